"""Errors as JSON, in the shapes of the published contract.

Validation errors follow FastAPI: ``{"detail": [{"type", "loc", "msg", "input", "ctx"}]}``.
"""

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

from django_run_cancel.exceptions import IdempotencyKeyReused

logger = logging.getLogger("django_run_cancel")

RETRY_AFTER_SECONDS = 1

ECHO_DEPTH = 2
ECHO_WIDTH = 3
ECHO_LENGTH = 100


class RequestInvalid(Exception):
    """The request does not have the form that the contract asks for: 422.

    Attributes:
        errors: The entries of ``detail``.
    """

    def __init__(self, *errors: dict[str, Any]) -> None:
        self.errors = list(errors)
        super().__init__(self.errors)


class LengthRequired(exceptions.APIException):
    """The server in front cannot tell where a body without a length ends: 411."""

    status_code = 411
    default_detail = "Send the body with a Content-Length"


def problem(
    kind: str, loc: list[str | int], msg: str, value: Any, ctx: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return one entry of ``detail``.

    Args:
        kind: Machine-readable type of the error.
        loc: Where it is, from the part of the request inwards.
        msg: What is wrong, in English.
        value: What was sent; echoed in part.
        ctx: Values that the message is made from.
    """
    entry = {"type": kind, "loc": loc, "msg": msg, "input": echo(value)}
    return entry if ctx is None else {**entry, "ctx": ctx}


def echo(value: Any, depth: int = ECHO_DEPTH) -> Any:
    """Return as much of a decoded JSON value as is safe and useful to send back.

    Whatever was sent, the result is small and is JSON: no NaN, no endless digits, no deep nesting.
    """
    if isinstance(value, str):
        return value if len(value) <= ECHO_LENGTH else value[:ECHO_LENGTH] + "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return echo(str(value))
    if isinstance(value, list | dict) and depth == 0:
        return "…"
    if isinstance(value, list):
        shown = [echo(item, depth - 1) for item in value[:ECHO_WIDTH]]
        return shown if len(value) <= ECHO_WIDTH else [*shown, "…"]
    if isinstance(value, dict):
        names = list(value)[:ECHO_WIDTH]
        return {echo(name): echo(value[name], depth - 1) for name in names}
    return value


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Return the answer to an error, or None when it is a bug of the server.

    Args:
        error: What the view raised.
        context: The view and its arguments, as DRF passes them.
    """
    match error:
        case RequestInvalid():
            return Response({"detail": error.errors}, 422)
        case IdempotencyKeyReused():
            loc: list[str | int] = ["header", "idempotency-key"]
            msg = "The key was used before, for another request"
            entry = problem("idempotency_key_reused", loc, msg, error.idempotency_key)
            return Response({"detail": [entry]}, 422)
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            return _detail(403, "Invalid credentials")
        case exceptions.MethodNotAllowed():
            return _detail(405, "Method Not Allowed")
        case exceptions.NotFound() | Http404():
            return _detail(404, "Not Found")
        case exceptions.Throttled():
            wait = math.ceil(getattr(error, "wait", None) or RETRY_AFTER_SECONDS)
            return _detail(429, "Too Many Requests", {"Retry-After": str(wait)})
        case exceptions.APIException():
            return _detail(error.status_code, str(error.detail))
        case PermissionDenied():
            return _detail(403, "Forbidden")
        case RequestDataTooBig():
            return _detail(413, "Request body too large")
        case SuspiciousOperation() | MultiPartParserError() | UnreadablePostError():
            return _detail(400, "There was an error parsing the request")
        case OperationalError() | InterfaceError() | InternalError():
            logger.exception("The database could not answer", exc_info=error)
            return _detail(
                503,
                "The database is busy or away; please ask again",
                {"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
    return None


def _detail(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return Response({"detail": detail}, status, headers=headers)
