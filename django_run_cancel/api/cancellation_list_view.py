"""Endpoint for cancellations: lists them, and starts bulk cancellations."""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.models import QuerySet
from django.utils.encoding import escape_uri_path
from django.utils.http import escape_leading_slashes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.exceptions import ErrorDetail
from rest_framework.mixins import ListModelMixin
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response

from django_run_cancel.api.bulk_examples import EXAMPLES
from django_run_cancel.api.bulk_serializers import (
    BulkCancellationPreviewSerializer,
    BulkCancellationRequestSerializer,
    RunSelectionSerializer,
)
from django_run_cancel.api.cancellation_views import CancellationView, with_progress
from django_run_cancel.api.exceptions import RequestInvalid, TooManyBulkCancellations
from django_run_cancel.api.generics import error_responses, record_headers, requester
from django_run_cancel.api.pagination import CancellationPagination
from django_run_cancel.api.permissions import visible_runs
from django_run_cancel.api.schema import describe_operation
from django_run_cancel.api.serializers import RunCancellationSerializer
from django_run_cancel.cancellation.arguments import label_of_user
from django_run_cancel.cancellation.bulk import preview_bulk_cancellation, start_bulk_cancellation
from django_run_cancel.cancellation.filters import filter_runs
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.records import recorded_id
from django_run_cancel.conf import settings
from django_run_cancel.models import ApiKey, Cancellation, get_run_model
from django_run_cancel.states import UNSETTLED, Source

MAX_SAMPLE_ITEMS = 100
"""Maximum number of items in the response to a preview."""

HEADERS = [
    OpenApiParameter(
        "Idempotency-Key",
        {"type": "string", "minLength": 1, "maxLength": 255},
        OpenApiParameter.HEADER,
        description="A repeated request with the same key gets the record of the first.",
    ),
    OpenApiParameter(
        "Location",
        str,
        OpenApiParameter.HEADER,
        description="Where the cancellation can be read.",
        response=[202],
    ),
]


class CancellationListView(ListModelMixin, CancellationView):
    """Lists cancellations, and starts bulk cancellations."""

    pagination_class = CancellationPagination

    @property
    def throttle_scope(self) -> str:
        """Name of the throttle scope."""
        return "run_read" if self.request.method in SAFE_METHODS else "run_cancel_bulk"

    def paginate_queryset(self, queryset: Any) -> Any:
        """Return a page of cancellations with their progress."""
        return with_progress(super().paginate_queryset(queryset) or [])

    @describe_operation(
        operation_id="list_cancellations",
        tags=["Cancellations"],
        summary="List cancellations",
        description="The newest first.",
        responses={
            200: RunCancellationSerializer(many=True),
            **error_responses(403, 422, 429, 503),
        },
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Answer with a page of cancellations."""
        return self.list(request)

    @describe_operation(
        operation_id="start_bulk_cancellation",
        tags=["Cancellations"],
        summary="Cancel any number of runs",
        description="Cancel runs, named by ids or by a filter, and everything below them. The "
        "runs are chosen when this is asked; delivery workers then cancel them in small "
        "transactions, and the record says how far they are. With dry_run nothing is recorded.",
        parameters=HEADERS,
        request=BulkCancellationRequestSerializer,
        responses={
            200: OpenApiResponse(BulkCancellationPreviewSerializer, "With dry_run: the preview"),
            202: OpenApiResponse(RunCancellationSerializer, "The record"),
            **error_responses(400, 403, 413, 415, 422, 429, 503),
        },
        examples=EXAMPLES,
    )
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Start a bulk cancellation, or return a preview."""
        body = self.validated_body(BulkCancellationRequestSerializer)
        self.check_force(force=body["force"])
        key = self.idempotency_key()
        runs = self._selected_runs(body)
        if body["dry_run"]:
            return Response(_preview(runs, body, requester(request)))
        record = self._start(runs, body, key)
        # Not reverse(), which would need the arguments that the host's URL prefix captures.
        path = f"{escape_uri_path(request.path).rstrip('/')}/{record.cancellation_id}"
        headers = {"Location": escape_leading_slashes(path), **record_headers(record)}
        return self.answer(record, 202, headers)

    def _selected_runs(self, body: dict[str, Any]) -> QuerySet[Any]:
        """Return the runs that the caller may access, filtered if the body has a filter."""
        runs = visible_runs(self.request).using(router.db_for_write(get_run_model()))
        if "filter" not in body:
            return runs
        if "tenant" in body["filter"] and isinstance(self.request.auth, ApiKey):
            _check_tenants(self.request)
        return filter_runs(runs, body["filter"])

    def _start(self, runs: QuerySet[Any], body: dict[str, Any], key: str | None) -> Cancellation:
        caller = requester(self.request)
        _check_capacity(caller, key)
        asked = RunSelectionSerializer.as_json(body.get("filter", {}))
        started = start_bulk_cancellation(
            runs,
            run_ids=body.get("run_ids"),
            selection={"filter": asked} if asked else None,
            **caller,
            source=Source.API,
            origin=Origin.of(self.request),
            reason=body["reason"],
            force=body["force"],
            idempotency_key=key,
        )
        return started.cancellation


def _preview(runs: QuerySet[Any], body: dict[str, Any], caller: dict[str, Any]) -> Any:
    preview = preview_bulk_cancellation(
        runs,
        run_ids=body.get("run_ids"),
        requested_by=caller["requested_by"],
        force=body["force"],
    )
    # Shorten invalid ids as items do; otherwise the response could be as large as the request.
    sample = [
        item._replace(run_id=recorded_id(item.run_id))
        for item in preview.sample.items[:MAX_SAMPLE_ITEMS]
    ]
    shown = {"count": preview.count, "is_capped": preview.is_capped, "sample": sample}
    return BulkCancellationPreviewSerializer(shown).data


def _check_tenants(request: Request) -> None:
    if not settings.SCOPE:
        error = ErrorDetail("A key reaches the runs of its own tenant only", "extra_forbidden")
        raise RequestInvalid("body", {"filter": {"tenant": [error]}}, request.data)


def _check_capacity(caller: dict[str, Any], key: str | None) -> None:
    """Refuse a new bulk cancellation if the tenant has too many in progress.

    The limit may be exceeded by requests at the same moment, which do not see each other's rows.
    """
    records = Cancellation.objects.using(router.db_for_write(Cancellation))
    in_progress = records.filter(
        tenant=caller.get("tenant"), state__in=UNSETTLED, selection__isnull=False
    )
    if in_progress.count() < settings.MAX_BULK:
        return
    user = caller["requested_by"]
    label = user if isinstance(user, str) else label_of_user(user)
    earlier = records.filter(idempotency_key=key, requested_by=label, source=Source.API)
    if key is None or not earlier.exists():
        raise TooManyBulkCancellations(settings.MAX_BULK)
