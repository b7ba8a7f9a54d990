"""The base view of all endpoints. The host's REST_FRAMEWORK settings do not matter to it."""

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
    """Base of the endpoints.

    URL arguments that a prefix of the host's captures are ignored; ``RUN_CANCEL_SCOPE`` finds them
    in ``request.parser_context["kwargs"]``.
    """

    is_run_cancel_view = True

    authentication_classes = (ApiKeyAuthentication, SessionAuthentication)
    permission_classes = (MayCancelRuns,)
    throttle_classes: tuple[type[BaseThrottle], ...] = (RunThrottle,)
    parser_classes = (JSONBodyParser,)
    renderer_classes = (ASCIIJSONRenderer,)
    content_negotiation_class = JSONNegotiation
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
    def default_response_headers(self) -> dict[str, str]:
        """Return what every answer has: it is for one caller, and no cache may give it to others.

        Django's cache middleware and proxies know callers by their cookies, not by their keys.
        """
        return {**super().default_response_headers, "Cache-Control": "no-store, private"}

    @property
    def throttle_scope(self) -> str:
        """Which of the host's rates counts."""
        return "run_read" if self.request.method in SAFE_METHODS else "run_cancel"

    def get_exception_handler(self) -> Callable[..., Response | None]:
        """Return the handler of this package instead of the host's."""
        return exception_handler

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Check who asks, and let REST framework see a chunked body."""
        super().initial(request, *args, **kwargs)
        if (body := read_chunked_body(request)) is not None:
            request._stream = BytesIO(body) if body else None  # type: ignore[assignment]

    def get_object(self) -> M:
        """Return the row with the id in the URL.

        Raises:
            NotFound: There is none, or it is out of the caller's reach.
        """
        wanted = self.kwargs[self.lookup_field]
        if is_storable(wanted, MAX_ID_LENGTH):
            found = self.get_queryset().filter(**{self.lookup_field: wanted}).first()
            if found is not None:
                return found
        raise NotFound

    def validated_body(self, serializer: type[Serializer[Any]], *, required: bool = True) -> Any:
        """Return the valid body of the request.

        Args:
            serializer: What the body must be.
            required: Whether there must be one; otherwise none is taken as an empty object.

        Raises:
            RequestInvalid: It is not of that form.
        """
        body = None if request_is_empty(self.request) else self.request.data
        return validated("body", serializer, {} if body is None and not required else body)

    def cancel(self, run_ids: list[str], reason: str = "", *, force: bool = False) -> CancelResult:
        """Cancel runs on behalf of the caller.

        Raises:
            PermissionDenied: The caller may not cancel by force.
            RequestInvalid: The ``Idempotency-Key`` header cannot be used.
            IdempotencyKeyReused: It was used before, for another request.
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
        """Refuse force to who may not use it.

        Raises:
            PermissionDenied: Force is asked for, and the caller may not.
        """
        if force and not may_force(self.request):
            raise PermissionDenied(MayCancelRuns.message)

    def idempotency_key(self) -> str | None:
        """Return the header ``Idempotency-Key``, or None.

        Raises:
            RequestInvalid: It is blank, too long or cannot be stored.
        """
        name = "idempotency-key"
        sent = {name: self.request.headers[name]} if name in self.request.headers else {}
        key: str | None = validated("header", IdempotencyKeySerializer, sent).get(name)
        return key


def requester(request: Request) -> dict[str, Any]:
    """Return who asks, as the functions that cancel want it, and the tenant of a key."""
    if isinstance(request.auth, ApiKey):
        return {"requested_by": request.auth.label, "tenant": request.auth.tenant}
    return {"requested_by": request.user}


def request_is_empty(request: Request) -> bool:
    """Tell whether a request has no body. REST framework makes an empty object of it."""
    return request.stream is None


def validated(location: Location, serializer_class: type[Serializer[Any]], sent: Any) -> Any:
    """Return a part of a request as its serializer makes it.

    Raises:
        RequestInvalid: The part is not of the serializer's form.
    """
    serializer = serializer_class(data=sent)
    if not serializer.is_valid():
        raise RequestInvalid(location, serializer.errors, sent)
    return serializer.validated_data


def record_headers(record: Cancellation | None) -> dict[str, str]:
    """Return the header that names the record of a cancellation, when there is one."""
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
