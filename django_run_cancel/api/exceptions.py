"""Exceptions of the API, and the exception handler that converts all errors to JSON responses."""

from __future__ import annotations

import logging
import math
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, InternalError, OperationalError
from django.http import Http404, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from rest_framework import exceptions
from rest_framework.response import Response

from django_run_cancel.api.validation_errors import Location, contract_entries
from django_run_cancel.exceptions import IdempotencyKeyReused

logger = logging.getLogger("django_run_cancel")

RETRY_AFTER_SECONDS = 1

RETRY_BULK_AFTER_SECONDS = 10

MISSING_KEY_HINT = "The header x-api-key is missing, and no user is logged in"


class RequestInvalid(exceptions.ValidationError):
    """A part of the request is invalid: 422.

    Attributes:
        location: The part: body, query or header.
        sent: Its value, of which the response echoes the invalid parts.
    """

    status_code = 422

    def __init__(self, location: Location, detail: Any, sent: Any) -> None:
        super().__init__(detail)
        self.location = location
        self.sent = sent


class InvalidJSON(exceptions.ParseError):
    """The body is not valid JSON: 422, as the contract requires.

    Attributes:
        position: Index of the first invalid character.
        problem: Description of the problem.
    """

    status_code = 422

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(problem)
        self.position = position
        self.problem = problem


class LengthRequired(exceptions.APIException):
    """The WSGI server cannot detect the end of a body without a Content-Length: 411."""

    status_code = 411
    default_detail = "Send the body with a Content-Length"


class TooManyBulkCancellations(exceptions.APIException):
    """The tenant has the maximum number of bulk cancellations in progress: 429."""

    status_code = 429

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} bulk cancellations are in progress, which is the limit. Wait for one to "
            "end, or abort one"
        )


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Return the response to an error, or None for an unexpected error, which becomes a 500.

    Args:
        error: The exception of the view.
        context: The view, the request and its arguments, as REST framework passes them.
    """
    match error:
        case RequestInvalid():
            entries = contract_entries(error.detail, [error.location], error.sent)
            return Response({"detail": entries}, error.status_code)
        case InvalidJSON():
            return Response({"detail": [_json_entry(error)]}, error.status_code)
        case IdempotencyKeyReused():
            return Response({"detail": [_reuse_entry(error)]}, 422)
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            is_missing = "HTTP_X_API_KEY" not in context["request"].META
            hint = {"hint": MISSING_KEY_HINT} if is_missing else {}
            return Response({"detail": "Invalid credentials", **hint}, 403)
        case exceptions.MethodNotAllowed():
            return _answer(405, "Method Not Allowed")
        case exceptions.NotFound() | Http404():
            return _answer(404, "Not Found")
        case exceptions.Throttled():
            wait = math.ceil(getattr(error, "wait", None) or RETRY_AFTER_SECONDS)
            return _answer(429, "Too Many Requests", {"Retry-After": str(wait)})
        case TooManyBulkCancellations():
            headers = {"Retry-After": str(RETRY_BULK_AFTER_SECONDS)}
            return _answer(error.status_code, str(error.detail), headers)
        case exceptions.UnsupportedMediaType():
            return _answer(415, "Send the body as application/json")
        case exceptions.APIException():
            return _answer(error.status_code, str(error.detail))
        case PermissionDenied():
            return _answer(403, "Forbidden")
        case RequestDataTooBig():
            return _answer(413, "Request body too large")
        case SuspiciousOperation() | MultiPartParserError() | UnreadablePostError():
            return _answer(400, "There was an error parsing the request")
        case OperationalError() | InterfaceError() | InternalError():
            logger.exception("The database could not answer", exc_info=error)
            return _answer(
                503,
                "The database is busy or unreachable; please try again",
                {"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
    return None


def _answer(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return Response({"detail": detail}, status, headers=headers)


def _json_entry(error: InvalidJSON) -> dict[str, Any]:
    return {
        "type": "json_invalid",
        "loc": ["body", error.position],
        "msg": "JSON decode error",
        "input": {},
        "ctx": {"error": error.problem},
    }


def _reuse_entry(error: IdempotencyKeyReused) -> dict[str, Any]:
    return {
        "type": "idempotency_key_reused",
        "loc": ["header", "idempotency-key"],
        "msg": "The key was used before, for another request",
        "input": error.idempotency_key,
    }
