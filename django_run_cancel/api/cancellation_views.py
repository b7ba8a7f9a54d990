"""Endpoints for one cancellation: read it, list its items, retry it, abort it."""

from __future__ import annotations

from typing import Any

from django.db.models import Exists, OuterRef, QuerySet
from drf_spectacular.utils import OpenApiResponse
from rest_framework.request import Request
from rest_framework.response import Response

from django_run_cancel.api.generics import (
    RunCancelView,
    error_responses,
    id_parameter,
    validated,
)
from django_run_cancel.api.pagination import CancellationItemPagination
from django_run_cancel.api.permissions import visible_cancellations
from django_run_cancel.api.schema import describe_operation
from django_run_cancel.api.serializers import (
    CancellationItemFilterSerializer,
    EmptyBodySerializer,
    RunCancelErrorSerializer,
    RunCancellationItemSerializer,
    RunCancellationSerializer,
)
from django_run_cancel.cancellation.bulk import abort_bulk_cancellation, retry_bulk_cancellation
from django_run_cancel.cancellation.evidence import with_evidence
from django_run_cancel.cancellation.progress import progress_of
from django_run_cancel.delivery.outbox import retry_deliveries
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model

CANCELLATION_ID = id_parameter(
    "cancellation_id", "From the header Cancellation-Id, or from a run that was cancelled."
)


class CancellationView(RunCancelView[Cancellation]):
    """Base view of the endpoints for cancellations."""

    serializer_class: Any = RunCancellationSerializer
    lookup_field = "cancellation_id"

    def get_queryset(self) -> QuerySet[Cancellation]:
        """Return the cancellations that the caller may read."""
        return visible_cancellations(self.request)

    def answer(
        self, record: Cancellation, status: int = 200, headers: dict[str, str] | None = None
    ) -> Response:
        """Return a response with a cancellation and its progress."""
        serializer = self.get_serializer(*with_progress([record]))
        return Response(serializer.data, status, headers=headers)


def with_progress(records: list[Cancellation]) -> list[Cancellation]:
    """Set the attribute ``progress`` of each cancellation, with at most one query."""
    progress = progress_of(records)
    for record in records:
        record.progress = progress[record.pk]  # type: ignore[attr-defined]
    return records


class CancellationDetailView(CancellationView):
    """Reads one cancellation."""

    @describe_operation(
        operation_id="read_cancellation",
        tags=["Cancellations"],
        summary="Read a cancellation",
        description="Who asked for it, when and why, how many runs it concerns, and how far it is.",
        parameters=[CANCELLATION_ID],
        responses={200: RunCancellationSerializer, **error_responses(403, 404, 429, 503)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Answer with the cancellation."""
        return self.answer(self.get_object())


class CancellationItemListView(CancellationView):
    """Lists the items of a cancellation."""

    serializer_class = RunCancellationItemSerializer
    pagination_class = CancellationItemPagination

    @describe_operation(
        operation_id="list_cancellation_items",
        tags=["Cancellations"],
        summary="List the runs of a cancellation",
        description="Those asked for, in the order of the request, then their descendants.",
        parameters=[CANCELLATION_ID, CancellationItemFilterSerializer],
        responses={
            200: RunCancellationItemSerializer(many=True),
            **error_responses(403, 404, 422, 429, 503),
        },
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Answer with a page of items."""
        items: Any = self._filtered_items(self.get_object())
        page = with_evidence(self.paginate_queryset(items) or [])
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    def _filtered_items(self, record: Cancellation) -> QuerySet[CancellationItem]:
        filters = validated("query", CancellationItemFilterSerializer, self.request.query_params)
        items = record.items.all()
        if "outcome" in filters:
            items = items.filter(outcome__in=filters["outcome"])
        if "stop_state" in filters:
            # As in with_evidence(): the run's current stop state, unless it was not found then.
            runs = get_run_model()._base_manager.filter(
                run_id=OuterRef("run_id"), stop_state__in=filters["stop_state"]
            )
            items = items.exclude(previous_status="").filter(Exists(runs))
        return items


class RetryCancellationView(CancellationView):
    """Retries the failed items or chunks of a cancellation."""

    @describe_operation(
        operation_id="retry_cancellation",
        tags=["Cancellations"],
        summary="Retry what has failed",
        description="Tell executors again, and call handlers again, where the last attempt has "
        "failed; of a bulk cancellation, also cancel again the runs that could not be written. "
        "The body is empty.",
        parameters=[CANCELLATION_ID],
        request=None,
        responses={
            200: RunCancellationSerializer,
            **error_responses(400, 403, 404, 413, 415, 422, 429, 503),
        },
    )
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Make its failed items due and answer with the cancellation."""
        self.validated_body(EmptyBodySerializer, required=False)
        record = self.get_object()
        retry_deliveries(record.items.all())
        retry_bulk_cancellation(record)
        return self.answer(record)


class AbortCancellationView(CancellationView):
    """Aborts a bulk cancellation."""

    @describe_operation(
        operation_id="abort_cancellation",
        tags=["Cancellations"],
        summary="Abort a bulk cancellation",
        description="Cancel no more of the runs that were asked for. Those that are cancelled "
        "stay so, and everything below them is still cancelled. The body is empty.",
        parameters=[CANCELLATION_ID],
        request=None,
        responses={
            200: RunCancellationSerializer,
            409: OpenApiResponse(RunCancelErrorSerializer, "Nothing is left to abort"),
            **error_responses(400, 403, 404, 413, 415, 422, 429, 503),
        },
    )
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Abort the cancellation, and return it."""
        self.validated_body(EmptyBodySerializer, required=False)
        record = self.get_object()
        if not abort_bulk_cancellation(record):
            return Response({"detail": f"Nothing is left to abort: it is {record.state}"}, 409)
        return self.answer(record)
