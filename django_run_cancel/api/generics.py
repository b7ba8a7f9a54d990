"""``RunCancelView``, the base of all endpoints; it ignores the host's REST_FRAMEWORK settings."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

from django.db import connections, transaction
from django.db.models import Model
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import NotFound, PermissionDenied
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.throttling import BaseThrottle

from django_run_cancel.api.authentication import ApiKeyAuthentication
from django_run_cancel.api.exceptions import RequestInvalid, exception_handler
from django_run_cancel.api.parsers import JSONBodyParser, read_chunked_body
from django_run_cancel.api.permissions import MayCancelRuns, may_force, visible_runs
from django_run_cancel.api.renderers import ASCIIJSONRenderer, JSONNegotiation
from django_run_cancel.api.serializers import (
    HTTPValidationErrorSerializer,
    IdempotencyKeySerializer,
    RunCancelErrorSerializer,
)
from django_run_cancel.api.throttling import RunThrottle
from django_run_cancel.api.validation_errors import Location
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.results import CancelResult
from django_run_cancel.cancellation.service import cancel_runs
from django_run_cancel.models import ApiKey, Cancellation
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import Source

M = TypeVar("M", bound=Model)

MAX_ID_LENGTH = 64


class RunCancelView(GenericAPIView[M]):
    """Base view of the endpoints.

    It ignores arguments that the host's URL prefix captures; ``RUN_CANCEL_SCOPE`` can read them in
    ``request.parser_context["kwargs"]``.
    """

    is_run_cancel_view = True

    authentication_classes = (ApiKeyAuthentication, SessionAuthentication)
    permission_classes = (MayCancelRuns,)
    throttle_classes: tuple[type[BaseThrottle], ...] = (RunThrottle,)
    parser_classes = (JSONBodyParser,)
    renderer_classes = (ASCIIJSONRenderer,)
    content_negotiation_class = JSONNegotiation
    versioning_class = None
    metadata_class = None  # no response to OPTIONS, which is not allowed
    http_method_names = ["get", "head", "post"]
    filter_backends = ()

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Any:
        """Return the view, exempt from ATOMIC_REQUESTS; ``cancel_runs()`` has its own transaction.

        In a transaction of the request, deadlocks could not be retried, an error response could
        roll back the cancellation, and database errors at its begin or commit would become a 500.
        """
        view = super().as_view(**initkwargs)
        for alias in connections:
            transaction.non_atomic_requests(alias)(view)
        return view

    @property
    def default_response_headers(self) -> dict[str, str]:
        """Return what every answer has: it is for one caller, and no cache may give it to others.

        Django's cache middleware and proxies know callers by their cookies, not by their keys.
        """
        return {**super().default_response_headers, "Cache-Control": "no-store, private"}

    @property
    def throttle_scope(self) -> str:
        """Name of the throttle scope."""
        return "run_read" if self.request.method in SAFE_METHODS else "run_cancel"

    def get_exception_handler(self) -> Callable[..., Response | None]:
        """Return this package's exception handler instead of the host's."""
        return exception_handler

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Check authentication, permissions and rates, and make a chunked body readable for DRF."""
        super().initial(request, *args, **kwargs)
        if (body := read_chunked_body(request)) is not None:
            request._stream = BytesIO(body) if body else None  # type: ignore[assignment]

    def get_object(self) -> M:
        """Return the instance with the id in the URL.

        Raises:
            NotFound: It does not exist, or the caller may not access it.
        """
        public_id = self.kwargs[self.lookup_field]
        if is_storable(public_id, MAX_ID_LENGTH):
            instance = self.get_queryset().filter(**{self.lookup_field: public_id}).first()
            if instance is not None:
                return instance
        raise NotFound

    def validated_body(self, serializer: type[Serializer[Any]], *, required: bool = True) -> Any:
        """Validate the body of the request, and return the validated data.

        Args:
            serializer: Serializer of the body.
            required: Whether a body is required; if not, an empty one counts as an empty object.

        Raises:
            RequestInvalid: The body is invalid.
        """
        body = None if request_is_empty(self.request) else self.request.data
        return validated("body", serializer, {} if body is None and not required else body)

    def cancel(self, run_ids: list[str], reason: str = "", *, force: bool) -> CancelResult:
        """Cancel runs on behalf of the caller.

        Raises:
            PermissionDenied: The caller may not use force.
            RequestInvalid: The ``Idempotency-Key`` header is invalid.
            IdempotencyKeyReused: The key was used before with a different request.
        """
        self.check_force(force=force)
        return cancel_runs(
            run_ids,
            runs=visible_runs(self.request),
            **requester(self.request),
            source=Source.API,
            origin=Origin.of(self.request),
            reason=reason,
            force=force,
            idempotency_key=self.idempotency_key(),
        )

    def check_force(self, *, force: bool) -> None:
        """Check that the caller may use force, if it is requested.

        Raises:
            PermissionDenied: The caller may not use force.
        """
        if force and not may_force(self.request):
            raise PermissionDenied(MayCancelRuns.message)

    def idempotency_key(self) -> str | None:
        """Return the header ``Idempotency-Key``, or None.

        Raises:
            RequestInvalid: The header is blank, too long or cannot be stored.
        """
        name = "idempotency-key"
        if name not in self.request.headers:
            return None
        sent = {name: self.request.headers[name]}
        key: str = validated("header", IdempotencyKeySerializer, sent)[name]
        return key


def requester(request: Request) -> dict[str, Any]:
    """Return the arguments of ``cancel_runs()`` for the caller: ``requested_by`` and ``tenant``."""
    if isinstance(request.auth, ApiKey):
        return {"requested_by": request.auth.label, "tenant": request.auth.tenant}
    return {"requested_by": request.user}


def request_is_empty(request: Request) -> bool:
    """Tell whether a request has no body, which ``request.data`` would show as an empty object."""
    return request.stream is None


def validated(location: Location, serializer_class: type[Serializer[Any]], sent: Any) -> Any:
    """Validate a part of a request with a serializer, and return the validated data.

    Raises:
        RequestInvalid: The part is invalid.
    """
    serializer = serializer_class(data=sent)
    if not serializer.is_valid():
        raise RequestInvalid(location, serializer.errors, sent)
    return serializer.validated_data


def record_headers(record: Cancellation | None) -> dict[str, str]:
    """Return the response header with the cancellation's id, if there is a cancellation."""
    return {} if record is None else {"Cancellation-Id": record.cancellation_id}


def id_parameter(name: str, description: str) -> OpenApiParameter:
    """Return the OpenAPI parameter of an id in the path."""
    return OpenApiParameter(name, str, OpenApiParameter.PATH, description=description)


def error_responses(*statuses: int) -> dict[int, Any]:
    """Return the OpenAPI descriptions of an endpoint's error responses, by status."""
    responses = {
        400: OpenApiResponse(RunCancelErrorSerializer, "The request cannot be parsed"),
        403: OpenApiResponse(RunCancelErrorSerializer, "Invalid credentials, or not allowed"),
        404: OpenApiResponse(RunCancelErrorSerializer, "Unknown, or somebody else's"),
        409: OpenApiResponse(RunCancelErrorSerializer, "The run has finished"),
        413: OpenApiResponse(RunCancelErrorSerializer, "The body is too large"),
        415: OpenApiResponse(RunCancelErrorSerializer, "The body is not JSON"),
        422: OpenApiResponse(HTTPValidationErrorSerializer, "Validation Error"),
        429: OpenApiResponse(RunCancelErrorSerializer, "Too many requests"),
        503: OpenApiResponse(RunCancelErrorSerializer, "The database is busy or unreachable"),
    }
    return {status: responses[status] for status in statuses}
