"""``JSONBodyParser``: parses JSON bodies in any Unicode encoding, up to a maximum size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from django_run_cancel.api.exceptions import InvalidJSON, LengthRequired

MAX_BODY_BYTES = 2_621_440
"""Maximum size of a body if DATA_UPLOAD_MAX_MEMORY_SIZE is None."""

MAX_INT_DIGITS = 4_000
"""Maximum digits of an integer: Python refuses to convert more than 4,300."""


class JSONBodyParser(BaseParser):
    """Parses a body as JSON. Detects its encoding, and ignores a charset in the header."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the decoded body.

        Raises:
            InvalidJSON: The body is not JSON.
            ParseError: The body is shorter than its Content-Length, or cannot be decoded.
            RequestDataTooBig: The body is larger than DATA_UPLOAD_MAX_MEMORY_SIZE.
        """
        request: Request = (parser_context or {})["request"]
        length = _declared_length(request)
        if length > _max_bytes():
            raise RequestDataTooBig
        body = _read(stream)
        if len(body) < length:
            raise ParseError("The body ended before its Content-Length")
        return _decode(body)


def read_chunked_body(request: Request) -> bytes | None:
    """Return the body of a chunked request, which has no Content-Length; None for other requests.

    REST framework would consider such a body empty.

    Raises:
        LengthRequired: The WSGI server does not mark the end of the body.
        ParseError: The body cannot be read.
        RequestDataTooBig: The body is larger than DATA_UPLOAD_MAX_MEMORY_SIZE.
    """
    if request.META.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" not in request.META:
        return None
    if "wsgi.input" not in request.META:  # under ASGI, Django has read the whole body
        return _read(request)
    if not request.META.get("wsgi.input_terminated"):
        raise LengthRequired
    return _read(request.META["wsgi.input"])


def _read(stream: Any) -> bytes:
    try:
        body: bytes = stream.read(_max_bytes() + 1)
    except Exception:  # noqa: BLE001 - servers raise their own errors for malformed chunks
        raise ParseError("There was an error reading the body") from None
    if len(body) > _max_bytes():
        raise RequestDataTooBig
    return body


def _max_bytes() -> int:
    return settings.DATA_UPLOAD_MAX_MEMORY_SIZE or MAX_BODY_BYTES


def _declared_length(request: Request) -> int | float:
    declared = request.META.get("CONTENT_LENGTH") or ""
    return _parse_int(declared) if declared.isdecimal() else 0


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        raise InvalidJSON(_position(error), error.msg) from None
    except RecursionError:
        raise InvalidJSON(0, "Nested too deeply") from None
    except UnicodeDecodeError:
        raise ParseError("There was an error parsing the body") from None


def _position(error: json.JSONDecodeError) -> int:
    # Since 3.13 Python reports the position of an illegal trailing comma; the contract, that of the
    # next character.
    rest = error.doc[error.pos + 1 :].lstrip(" \t\n\r")
    return len(error.doc) - len(rest) if "trailing comma" in error.msg else error.pos


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_INT_DIGITS else float(digits)
