"""Reading requests: bodies of any size, charset and shape, ids, times and page sizes.

Checked by hand rather than by serializers: the contract prescribes the types and places of errors,
and the order of the checks keeps a list of 100,000 nulls from being looked at one by one.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest
from django.utils.dateparse import parse_datetime
from rest_framework.exceptions import ParseError, UnsupportedMediaType

from django_run_cancel.api.errors import (
    ECHO_DEPTH,
    LengthRequired,
    RequestInvalid,
    echo,
    problem,
)
from django_run_cancel.ids import is_storable

MAX_RUN_IDS = 100
MAX_BODY_BYTES = 2_621_440
"""Used where DATA_UPLOAD_MAX_MEMORY_SIZE sets no limit."""

MAX_DISCARDED_BYTES = 64 * 2**20
MAX_DISCARD_SECONDS = 2.0
DISCARD_STEP = 16 * 2**10

MAX_MOMENT_LENGTH = 64
MAX_INT_DIGITS = 4_000
"""Python refuses to convert more than 4,300."""

MISSING = "missing", "Field required"


def read_json(request: HttpRequest) -> Any:
    """Return the decoded body of a request, or None when there is none.

    The encoding is detected as JSON prescribes; a charset in the header is ignored.

    Args:
        request: Django's request, of which nothing has been read.

    Raises:
        LengthRequired: The length is unknown, and the server does not delimit the body.
        ParseError: The body ended early, or is no text.
        RequestDataTooBig: It is larger than DATA_UPLOAD_MAX_MEMORY_SIZE.
        RequestInvalid: It is no JSON.
        UnsupportedMediaType: It says that it is something else.
    """
    body = _read(request)
    if not body:
        return None
    media_type = request.META.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise UnsupportedMediaType(media_type, "Send the body as application/json")
    try:
        return json.loads(body, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        loc: list[str | int] = ["body", _position(error)]
        raise RequestInvalid(
            problem("json_invalid", loc, "JSON decode error", {}, {"error": error.msg})
        ) from None
    except RecursionError:
        ctx = {"error": "Nested too deeply"}
        raise RequestInvalid(
            problem("json_invalid", ["body", 0], "JSON decode error", {}, ctx)
        ) from None
    except UnicodeDecodeError:
        raise ParseError("There was an error parsing the body") from None


def _position(error: json.JSONDecodeError) -> int:
    # Since 3.13 Python points at an illegal trailing comma; the contract, at what follows it.
    rest = error.doc[error.pos + 1 :].lstrip(" \t\n\r")
    return len(error.doc) - len(rest) if "trailing comma" in error.msg else error.pos


def _read(request: HttpRequest) -> bytes:
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE or MAX_BODY_BYTES
    length = _length(request)
    if length > limit:
        raise RequestDataTooBig
    stream = _stream(request)
    if stream is None:
        raise LengthRequired
    try:
        body: bytes = stream.read(limit + 1)
    except Exception:  # noqa: BLE001 - servers have errors of their own for malformed chunks
        raise ParseError("There was an error reading the body") from None
    if len(body) > limit:
        raise RequestDataTooBig
    if len(body) < length:
        raise ParseError("The body ended before its Content-Length")
    return body


def _length(request: HttpRequest) -> int:
    """Return the declared length of the body; 0 when there is none that can be read."""
    declared = request.META.get("CONTENT_LENGTH") or ""
    return int(declared) if declared.isdecimal() and len(declared) < MAX_INT_DIGITS else 0


def _stream(request: HttpRequest) -> Any:
    """Return what to read the body from, or None when nothing tells where it ends."""
    if request.META.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" not in request.META:
        return request
    # Under WSGI, Django reads nothing of a chunked body; under ASGI it has all of it.
    if request.META.get("wsgi.input_terminated"):
        return request.META["wsgi.input"]
    return None if "wsgi.input" in request.META else request


def discard_body(request: HttpRequest) -> None:
    """Read the rest of the body, within bounds, and forget it.

    A server that closes a connection with unread data makes the network reset it, and the client
    loses the answer that says what was wrong. Under ASGI, Django has read all of it before.
    """
    stream = _stream(request) if "wsgi.input" in request.META else None
    if stream is None:
        return
    until = time.monotonic() + MAX_DISCARD_SECONDS
    left = MAX_DISCARDED_BYTES
    try:
        while left > 0 and time.monotonic() < until and (piece := stream.read(DISCARD_STEP)):
            left -= len(piece)
    except Exception:  # noqa: BLE001 - see _read(); the answer is known already
        return


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_INT_DIGITS else float(digits)


def read_run_ids(body: Any) -> list[str]:
    """Return the ids in the decoded body of a bulk request.

    Raises:
        RequestInvalid: It is not as the contract says.
    """
    fields = read_object(body, required=True)
    if "run_ids" not in fields:
        raise RequestInvalid(problem(MISSING[0], ["body", "run_ids"], MISSING[1], fields))
    run_ids = fields["run_ids"]
    if not isinstance(run_ids, list):
        raise RequestInvalid(
            problem("list_type", ["body", "run_ids"], "Input should be a valid list", run_ids)
        )
    if len(run_ids) > MAX_RUN_IDS:
        raise RequestInvalid(
            problem(
                "too_long",
                ["body", "run_ids"],
                f"List should have at most {MAX_RUN_IDS} items after validation, "
                f"not {len(run_ids)}",
                run_ids,
                {"field_type": "List", "max_length": MAX_RUN_IDS, "actual_length": len(run_ids)},
            )
        )
    wrong = [index for index, item in enumerate(run_ids) if not isinstance(item, str)]
    if wrong:
        # One is shown in some depth; a hundred would add up.
        depth = ECHO_DEPTH if len(wrong) == 1 else 0
        msg = "Input should be a valid string"
        raise RequestInvalid(
            *(
                problem("string_type", ["body", "run_ids", index], msg, echo(run_ids[index], depth))
                for index in wrong
            )
        )
    return run_ids


def read_object(body: Any, *, required: bool) -> dict[str, Any]:
    """Return a decoded body that must be a JSON object.

    Raises:
        RequestInvalid: It is something else, or missing although required.
    """
    if body is None and not required:
        return {}
    if body is None:
        raise RequestInvalid(problem(MISSING[0], ["body"], MISSING[1], None))
    if not isinstance(body, dict):
        msg = "Input should be a valid dictionary or object to extract fields from"
        raise RequestInvalid(problem("model_attributes_type", ["body"], msg, body))
    return body


def read_text(value: Any, loc: list[str | int], max_length: int, *, blank: bool = True) -> str:
    """Return text that the database can hold.

    Raises:
        RequestInvalid: It is no string, blank though it must not be, too long, or holds NUL.
    """
    if not isinstance(value, str):
        raise RequestInvalid(problem("string_type", loc, "Input should be a valid string", value))
    if not is_storable(value, max_length) or not (blank or value.strip()):
        msg = f"Input should be text of at most {max_length} characters, without NUL"
        raise RequestInvalid(
            problem("string_invalid", loc, msg if blank else f"{msg} and not blank", value)
        )
    return value


def read_moment(text: str, loc: list[str | int]) -> datetime:
    """Return a point in time written in ISO 8601; UTC where it names no offset.

    Raises:
        RequestInvalid: It is something else, or outside of the years 1 to 9999 in UTC.
    """
    try:
        # The plus of an offset arrives as a space unless it was escaped.
        moment = parse_datetime(text.replace(" ", "+") if "T" in text else text)
        # Python takes a NUL at the end, and any number of digits of a second.
        if moment is None or not is_storable(text, MAX_MOMENT_LENGTH):
            raise ValueError
        if moment.tzinfo is None:
            return moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        msg = "Input should be a valid datetime"
        raise RequestInvalid(problem("datetime_parsing", loc, msg, text)) from None
