"""The endpoints on runs: cancel many, cancel one, list, read."""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from django_run_cancel.api.base import (
    RunCancelView,
    error_responses,
    id_parameter,
    record_headers,
)
from django_run_cancel.api.errors import RequestInvalid, problem
from django_run_cancel.api.pagination import NewestFirst
from django_run_cancel.api.parsing import (
    read_json,
    read_moment,
    read_object,
    read_run_ids,
    read_text,
)
from django_run_cancel.api.permissions import visible_runs
from django_run_cancel.api.schema import API_KEY_PARAMETER, RunAutoSchema, described_by
from django_run_cancel.api.serializers import (
    BulkCancelRunsRequestSerializer,
    BulkCancelRunsResponseSerializer,
    CancellableRunSerializer,
    CancelRunRequestSerializer,
    HTTPValidationErrorSerializer,
)
from django_run_cancel.ids import is_storable
from django_run_cancel.models import get_run_model
from django_run_cancel.services import MAX_REASON_LENGTH, MAX_RUN_ID_LENGTH
from django_run_cancel.states import Outcome, RunStatus

RUN_ID = id_parameter("run_id", "The id of the run.")


class BulkCancelRunsView(RunCancelView):
    """Cancels up to 100 runs; the published contract."""

    @extend_schema(
        operation_id="bulk_cancel_runs_v1_runs_cancel_post",
        tags=["Runs"],
        summary="Bulk cancel runs",
        description="Cancel multiple runs (tasks or workflows) in a single request",
        auth=[],
        parameters=[API_KEY_PARAMETER],
        request=BulkCancelRunsRequestSerializer,
        responses={
            200: OpenApiResponse(BulkCancelRunsResponseSerializer, "Successful Response"),
            422: OpenApiResponse(HTTPValidationErrorSerializer, "Validation Error"),
        },
    )
    @described_by(RunAutoSchema)
    def post(self, request: Request) -> Response:
        """Cancel the runs and answer which are cancelled now and which are not."""
        result = self.cancel(request, read_run_ids(read_json(request._request)))
        answer = {"cancelled": result.cancelled, "failed": result.failed}
        return Response(answer, headers=record_headers(result))


class CancelRunView(RunCancelView):
    """Cancels one run."""

    serializer_class = CancellableRunSerializer

    @extend_schema(
        operation_id="cancel_run",
        tags=["Runs"],
        summary="Cancel a run",
        description="Cancel a run and everything below it. Cancelling it again is no error.",
        parameters=[RUN_ID],
        request=CancelRunRequestSerializer,
        responses={
            200: OpenApiResponse(CancellableRunSerializer, "The run, cancelled"),
            **error_responses(400, 403, 404, 409, 413, 415, 422, 429, 503),
        },
    )
    @described_by(RunAutoSchema)
    def post(self, request: Request, run_id: str) -> Response:
        """Cancel the run and answer with what it is now."""
        fields = read_object(read_json(request._request), required=False)
        reason = read_text(fields.get("reason", ""), ["body", "reason"], MAX_REASON_LENGTH)
        result = self.cancel(request, [run_id], reason)
        headers = record_headers(result)
        item = result.items[0]
        # Returned, not raised: the record is there, and its id goes with the answer.
        if item.outcome == Outcome.NOT_FOUND:
            return Response({"detail": "Not Found"}, 404, headers=headers)
        if item.outcome == Outcome.ALREADY_FINISHED:
            detail = f"The run is {item.previous_status} and can no longer be cancelled"
            return Response({"detail": detail}, 409, headers=headers)
        # Not from a replica, nor through a scope that might not hold a cancelled run any more.
        model = get_run_model()
        run = get_run(model._base_manager.using(router.db_for_write(model)), run_id)
        return Response(self.get_serializer(run).data, headers=headers)


class RunListView(RunCancelView):
    """Lists runs."""

    serializer_class = CancellableRunSerializer
    pagination_class = NewestFirst

    @extend_schema(
        operation_id="list_runs",
        tags=["Runs"],
        summary="List runs",
        description="The newest first.",
        parameters=[
            OpenApiParameter("status", str, many=True, description="One of these statuses."),
            OpenApiParameter("type", str, description="Of this type."),
            OpenApiParameter("parent", str, description="Direct children of this run id."),
            OpenApiParameter("created_after", str, description="ISO 8601; this moment or later."),
            OpenApiParameter("created_before", str, description="ISO 8601; before this moment."),
        ],
        responses={200: CancellableRunSerializer(many=True), **error_responses(403, 422, 429, 503)},
    )
    @described_by(RunAutoSchema)
    def get(self, request: Request) -> Response:
        """Answer with a page of the runs that the filters leave."""
        return self.page(filtered(request, with_relations(visible_runs(request))))


class RunView(RunCancelView):
    """Reads one run."""

    serializer_class = CancellableRunSerializer

    @extend_schema(
        operation_id="read_run",
        tags=["Runs"],
        summary="Read a run",
        description="The run as it is now.",
        parameters=[RUN_ID],
        responses={200: CancellableRunSerializer, **error_responses(403, 404, 429, 503)},
    )
    @described_by(RunAutoSchema)
    def get(self, request: Request, run_id: str) -> Response:
        """Answer with the run."""
        return Response(self.get_serializer(get_run(visible_runs(request), run_id)).data)


def get_run(runs: QuerySet[Any], run_id: str) -> Any:
    """Return the run of this id among these.

    Raises:
        NotFound: There is none.
    """
    if is_storable(run_id, MAX_RUN_ID_LENGTH):
        run = with_relations(runs).filter(run_id=run_id).first()
        if run is not None:
            return run
    raise NotFound


def with_relations(runs: QuerySet[Any]) -> QuerySet[Any]:
    """Fetch with the runs what the serializer shows of their relations."""
    return runs.select_related("parent", "cancellation")


def filtered(request: Request, runs: QuerySet[Any]) -> QuerySet[Any]:
    """Narrow runs by the query parameters of the list.

    Raises:
        RequestInvalid: A parameter is not of its form.
    """
    query = request.query_params
    if statuses := query.getlist("status"):
        for status in statuses:
            if status not in RunStatus.values:
                msg = f"Input should be one of {', '.join(RunStatus.values)}"
                raise RequestInvalid(problem("enum", ["query", "status"], msg, status))
        runs = runs.filter(status__in=statuses)
    for name, lookup in (("type", "run_type"), ("parent", "parent__run_id")):
        if name in query:
            text = read_text(query[name], ["query", name], MAX_RUN_ID_LENGTH)
            runs = runs.filter(**{lookup: text})
    for name, lookup in (
        ("created_after", "created_at__gte"),
        ("created_before", "created_at__lt"),
    ):
        if name in query:
            runs = runs.filter(**{lookup: read_moment(query[name], ["query", name])})
    return runs
