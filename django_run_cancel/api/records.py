"""The endpoints on cancellations: what was asked, by whom, and what came of it."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from django_run_cancel.api.base import RunCancelView, error_responses, id_parameter
from django_run_cancel.api.pagination import InOrder, NewestRequestFirst
from django_run_cancel.api.parsing import read_json, read_object
from django_run_cancel.api.permissions import visible_cancellations
from django_run_cancel.api.schema import RunAutoSchema, described_by
from django_run_cancel.api.serializers import (
    RunCancellationItemSerializer,
    RunCancellationSerializer,
)
from django_run_cancel.evidence import with_evidence
from django_run_cancel.ids import is_storable
from django_run_cancel.models import Cancellation
from django_run_cancel.outbox import retry_deliveries

CANCELLATION_ID = id_parameter(
    "cancellation_id", "From the header Cancellation-Id, or from a run that was cancelled."
)


class CancellationListView(RunCancelView):
    """Lists cancellations."""

    serializer_class = RunCancellationSerializer
    pagination_class = NewestRequestFirst

    @extend_schema(
        operation_id="list_cancellations",
        tags=["Cancellations"],
        summary="List cancellations",
        description="The newest first.",
        responses={
            200: RunCancellationSerializer(many=True),
            **error_responses(403, 422, 429, 503),
        },
    )
    @described_by(RunAutoSchema)
    def get(self, request: Request) -> Response:
        """Answer with a page of them."""
        return self.page(visible_cancellations(request))


class CancellationView(RunCancelView):
    """Reads one cancellation."""

    serializer_class = RunCancellationSerializer

    @extend_schema(
        operation_id="read_cancellation",
        tags=["Cancellations"],
        summary="Read a cancellation",
        description="Who asked for it, when and why, and how many runs it concerned.",
        parameters=[CANCELLATION_ID],
        responses={200: RunCancellationSerializer, **error_responses(403, 404, 429, 503)},
    )
    @described_by(RunAutoSchema)
    def get(self, request: Request, cancellation_id: str) -> Response:
        """Answer with the cancellation."""
        record = get_cancellation(request, cancellation_id)
        return Response(self.get_serializer(record).data)


class CancellationItemListView(RunCancelView):
    """Lists what a cancellation did with each run."""

    serializer_class = RunCancellationItemSerializer
    pagination_class = InOrder

    @extend_schema(
        operation_id="list_cancellation_items",
        tags=["Cancellations"],
        summary="List the runs of a cancellation",
        description="Those asked for, in the order of the request, then their descendants.",
        parameters=[CANCELLATION_ID],
        responses={
            200: RunCancellationItemSerializer(many=True),
            **error_responses(403, 404, 422, 429, 503),
        },
    )
    @described_by(RunAutoSchema)
    def get(self, request: Request, cancellation_id: str) -> Response:
        """Answer with a page of them."""
        items = get_cancellation(request, cancellation_id).items.all()
        return self.page(items, with_evidence)


class RetryCancellationView(RunCancelView):
    """Tries again what has failed of a cancellation."""

    serializer_class = RunCancellationSerializer

    @extend_schema(
        operation_id="retry_cancellation",
        tags=["Cancellations"],
        summary="Retry failed deliveries",
        description="Tell executors again, and call handlers again, where the last attempt has "
        "failed. The body is empty.",
        parameters=[CANCELLATION_ID],
        request=None,
        responses={
            200: RunCancellationSerializer,
            **error_responses(400, 403, 404, 413, 415, 422, 429, 503),
        },
    )
    @described_by(RunAutoSchema)
    def post(self, request: Request, cancellation_id: str) -> Response:
        """Make its failed items due and answer with the cancellation."""
        read_object(read_json(request._request), required=False)
        record = get_cancellation(request, cancellation_id)
        retry_deliveries(record.items.all())
        return Response(self.get_serializer(record).data)


def get_cancellation(request: Request, cancellation_id: str) -> Cancellation:
    """Return a cancellation that the request may see.

    Raises:
        NotFound: There is none of this id, or it is somebody else's.
    """
    if is_storable(cancellation_id, 64):
        found = visible_cancellations(request).filter(cancellation_id=cancellation_id).first()
        if found is not None:
            return found
    raise NotFound
