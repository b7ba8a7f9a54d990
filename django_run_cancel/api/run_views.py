"""Endpoints for runs: cancel several, cancel one, list, read."""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiResponse
from rest_framework.exceptions import NotFound
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.request import Request
from rest_framework.response import Response

from django_run_cancel.api.generics import (
    RunCancelView,
    error_responses,
    id_parameter,
    record_headers,
    validated,
)
from django_run_cancel.api.pagination import RunPagination
from django_run_cancel.api.permissions import visible_runs
from django_run_cancel.api.schema import API_KEY_PARAMETER, describe_operation
from django_run_cancel.api.serializers import (
    BulkCancelRunsBodySerializer,
    BulkCancelRunsRequestSerializer,
    BulkCancelRunsResponseSerializer,
    CancellableRunSerializer,
    CancelRunRequestSerializer,
    HTTPValidationErrorSerializer,
    RunFilterSerializer,
)
from django_run_cancel.models import AbstractRun, get_run_model
from django_run_cancel.states import Outcome

RUN_ID = id_parameter("run_id", "The id of the run.")

RELATIONS = ("parent", "cancellation")
"""Foreign keys that the serializer of runs reads."""


class RunView(RunCancelView[AbstractRun]):
    """Base view of the endpoints for runs."""

    serializer_class = CancellableRunSerializer
    lookup_field = "run_id"

    def get_queryset(self) -> QuerySet[AbstractRun]:
        """Return the runs that the caller may access, with ``RELATIONS`` selected."""
        return visible_runs(self.request).select_related(*RELATIONS)


class BulkCancelRunsView(RunView):
    """Cancels up to 100 runs; the published contract."""

    @describe_operation(
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
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Cancel the runs, and return the ids that are cancelled and those that are not."""
        body = self.validated_body(BulkCancelRunsBodySerializer)
        result = self.cancel(body["run_ids"], force=body["force"])
        answer = {"cancelled": result.cancelled, "failed": result.failed}
        return Response(answer, headers=record_headers(result.cancellation))


class CancelRunView(RunView):
    """Cancels one run."""

    @describe_operation(
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
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Cancel the run, and return it."""
        body = self.validated_body(CancelRunRequestSerializer, required=False)
        result = self.cancel([kwargs["run_id"]], body["reason"], force=body["force"])
        headers = record_headers(result.cancellation)
        item = result.items[0]
        # Return responses instead of raising errors, to add the header with the cancellation's id.
        if item.outcome == Outcome.NOT_FOUND:
            return Response({"detail": "Not Found"}, 404, headers=headers)
        if item.outcome == Outcome.ALREADY_FINISHED:
            detail = f"The run is {item.previous_status} and can no longer be cancelled"
            return Response({"detail": detail}, 409, headers=headers)
        # Read from the primary database, and without the scope, which may exclude cancelled runs.
        model = get_run_model()
        runs = model._base_manager.using(router.db_for_write(model))
        run = runs.select_related(*RELATIONS).filter(run_id=kwargs["run_id"]).first()
        if run is None:  # deleted in the meantime
            raise NotFound
        return Response(self.get_serializer(run).data, headers=headers)


class RunListView(ListModelMixin, RunView):
    """Lists runs."""

    pagination_class = RunPagination

    def get_queryset(self) -> QuerySet[AbstractRun]:
        """Return the runs that meet the filters.

        Raises:
            RequestInvalid: A filter is not of its form.
        """
        filters = validated("query", RunFilterSerializer, self.request.query_params)
        lookups = {
            "status": "status__in",
            "run_type": "run_type",
            "parent": "parent__run_id",
            "created_after": "created_at__gte",
            "created_before": "created_at__lt",
        }
        given = {lookups[name]: value for name, value in filters.items()}
        return super().get_queryset().filter(**given)

    @describe_operation(
        operation_id="list_runs",
        tags=["Runs"],
        summary="List runs",
        description="The newest first.",
        parameters=[RunFilterSerializer],
        responses={200: CancellableRunSerializer(many=True), **error_responses(403, 422, 429, 503)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Answer with a page of the runs that meet the filters."""
        return self.list(request)


class RunDetailView(RetrieveModelMixin, RunView):
    """Reads one run."""

    @describe_operation(
        operation_id="read_run",
        tags=["Runs"],
        summary="Read a run",
        description="The run as it is now.",
        parameters=[RUN_ID],
        responses={200: CancellableRunSerializer, **error_responses(403, 404, 429, 503)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Answer with the run."""
        return self.retrieve(request)
