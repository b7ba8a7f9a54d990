"""What all endpoints share. Set per view: the host's REST_FRAMEWORK settings do not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.db import connections, transaction
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.authentication import SessionAuthentication
from rest_framework.generics import GenericAPIView
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import JSONParser
from rest_framework.permissions import SAFE_METHODS
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle

from django_run_cancel.api.authentication import ApiKeyAuthentication
from django_run_cancel.api.errors import exception_handler
from django_run_cancel.api.parsing import discard_body, read_text
from django_run_cancel.api.permissions import MayCancelRuns, visible_runs
from django_run_cancel.api.serializers import (
    HTTPValidationErrorSerializer,
    RunCancelErrorSerializer,
)
from django_run_cancel.api.throttling import RunThrottle
from django_run_cancel.models import ApiKey
from django_run_cancel.origin import Origin
from django_run_cancel.services import CancelResult, cancel_runs
from django_run_cancel.states import Source

MAX_IDEMPOTENCY_KEY_LENGTH = 255


class PlainJSONRenderer(JSONRenderer):
    """JSON in ASCII: a lone surrogate, which no charset can hold, is answered as it was sent."""

    ensure_ascii = True
    compact = True
    strict = True


class AlwaysJSON(BaseContentNegotiation):
    """Answers in JSON, whatever the client would accept."""

    def select_parser(self, request: Request, parsers: Iterable[Any]) -> Any:
        """Return the parser; bodies are read by ``read_json``."""
        return next(iter(parsers))

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the renderer and its media type."""
        renderer = next(iter(renderers))
        return renderer, renderer.media_type or ""


class RunCancelView(GenericAPIView[Any]):
    """Base of the endpoints."""

    is_run_cancel_view = True

    authentication_classes = (ApiKeyAuthentication, SessionAuthentication)
    permission_classes = (MayCancelRuns,)
    throttle_classes: tuple[type[BaseThrottle], ...] = (RunThrottle,)
    parser_classes = (JSONParser,)
    renderer_classes = (PlainJSONRenderer,)
    content_negotiation_class = AlwaysJSON
    versioning_class = None
    metadata_class = None  # DRF's describes serializers; OPTIONS is answered like any other method
    http_method_names = ["get", "head", "post"]
    filter_backends = ()

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view, exempt from ATOMIC_REQUESTS: the service has a transaction of its own.

        In the request's, a deadlock could not be retried, an error could undo the record, and
        what the database says at its beginning or end would be answered by Django, with 500.
        """
        view = super().as_view(**initkwargs)
        for alias in connections:
            transaction.non_atomic_requests(alias)(view)
        return view

    @property
    def throttle_scope(self) -> str:
        """Which of the host's rates counts."""
        return "run_read" if self.request.method in SAFE_METHODS else "run_cancel"

    def get_exception_handler(self) -> Callable[..., Response | None]:
        """Return the handler of this package instead of the host's."""
        return exception_handler

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        """Return the answer; after an error, take what is left of the body from the server."""
        if response.status_code >= 400:
            discard_body(self.request._request)
        return super().finalize_response(request, response, *args, **kwargs)

    def cancel(self, request: Request, run_ids: list[str], reason: str = "") -> CancelResult:
        """Cancel runs on behalf of the caller.

        Raises:
            RequestInvalid: The ``Idempotency-Key`` header cannot be used.
            IdempotencyKeyReused: It was used before, for another request.
        """
        idempotency_key = request.headers.get("Idempotency-Key")
        if idempotency_key is not None:
            loc: list[str | int] = ["header", "idempotency-key"]
            read_text(idempotency_key, loc, MAX_IDEMPOTENCY_KEY_LENGTH, blank=False)
        return cancel_runs(
            run_ids,
            runs=visible_runs(request),
            requested_by=request.auth if isinstance(request.auth, ApiKey) else request.user,  # type: ignore[arg-type]  # MayCancelRuns lets no anonymous user pass
            source=Source.API,
            origin=Origin.of(request._request),
            reason=reason,
            idempotency_key=idempotency_key,
        )

    def page(self, rows: Any, complete: Callable[[list[Any]], list[Any]] = list) -> Response:
        """Return one page of rows, after ``complete`` has added to them."""
        page = complete(self.paginate_queryset(rows) or [])
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


def record_headers(result: CancelResult) -> dict[str, str]:
    """Return the header that names the record of a cancellation, when there is one."""
    record = result.cancellation
    return {} if record is None else {"Cancellation-Id": record.cancellation_id}


def id_parameter(name: str, description: str) -> OpenApiParameter:
    """Describe an id in the path."""
    return OpenApiParameter(name, str, OpenApiParameter.PATH, description=description)


def error_responses(*statuses: int) -> dict[int, Any]:
    """Describe the errors of an endpoint, by status."""
    responses = {
        400: OpenApiResponse(RunCancelErrorSerializer, "The request cannot be parsed"),
        403: OpenApiResponse(RunCancelErrorSerializer, "Invalid credentials, or not allowed"),
        404: OpenApiResponse(RunCancelErrorSerializer, "Unknown, or somebody else's"),
        409: OpenApiResponse(RunCancelErrorSerializer, "The run has finished"),
        413: OpenApiResponse(RunCancelErrorSerializer, "The body is too large"),
        415: OpenApiResponse(RunCancelErrorSerializer, "The body is not JSON"),
        422: OpenApiResponse(HTTPValidationErrorSerializer, "Validation Error"),
        429: OpenApiResponse(RunCancelErrorSerializer, "Too many requests"),
        503: OpenApiResponse(RunCancelErrorSerializer, "The database is busy or away"),
    }
    return {status: responses[status] for status in statuses}
