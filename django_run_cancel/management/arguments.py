"""Kinds of arguments that several commands take."""

from __future__ import annotations

import json
import math
import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils.timezone import is_naive, make_aware

from django_run_cancel.cancellation.filters import is_metadata_key
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import ACTIVE, RunStatus

USAGE = 2
"""Exit status of a command that was called with wrong arguments; argparse uses the same."""

UNITS = {"d": "days", "h": "hours", "m": "minutes"}

ACTIVE_STATUSES = [status.value for status in RunStatus if status in ACTIVE]

MAX_METADATA_LENGTH = 1_000


def duration(text: str) -> timedelta:
    """Read a number of days, hours or minutes, such as ``90d``, ``12h`` or ``30m``.

    Raises:
        ArgumentTypeError: It is none.
    """
    match = re.fullmatch(r"([0-9]{1,5})([dhm])", text)
    if not match or not int(match[1]):
        raise ArgumentTypeError(f"{text!r} is not a duration such as 90d, 12h or 30m")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def age_or_time(text: str) -> timedelta | datetime:
    """Read an age, such as ``2h``, or a date or time in ISO format.

    A time without an offset is one of the time zone of the project, and a date its beginning.

    Raises:
        ArgumentTypeError: It is neither.
    """
    if re.fullmatch(r"[0-9]+[a-z]", text):
        return duration(text)
    try:
        found = datetime.fromisoformat(text)
        return (make_aware(found) if is_naive(found) else found).astimezone(UTC)
    except (ValueError, OverflowError):  # the latter: in UTC it would be before the first year
        raise ArgumentTypeError(
            f"{text!r} is neither an age such as 2h, 30m or 7d, nor a time such as "
            "2026-11-28T15:00Z"
        ) from None


def active_status(text: str) -> str:
    """Return a status that runs to cancel can have.

    Raises:
        ArgumentTypeError: There is none of that name.
    """
    if text not in ACTIVE_STATUSES:
        raise ArgumentTypeError(
            f"invalid choice: {text!r} (choose from {', '.join(ACTIVE_STATUSES)})"
        )
    return text


def key_and_value(text: str) -> tuple[str, Any]:
    """Read ``KEY=VALUE``; a value that is a JSON number, boolean, null or string is taken as one.

    Raises:
        ArgumentTypeError: There is no key or no sign, or no database can hold the text or look for
            the key.
    """
    key, sign, value = text.partition("=")
    if not (key and sign and is_storable(text, MAX_METADATA_LENGTH)):
        raise ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    if not is_metadata_key(key):
        raise ArgumentTypeError(
            f"{key!r} cannot be looked for: a key is no whole number, has no quotation mark, and "
            "does not begin with a minus"
        )
    return key, _json_or_text(value)


def _json_or_text(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    is_finite = not isinstance(value, float) or math.isfinite(value)
    is_scalar = value is None or isinstance(value, str | int | float)
    is_text = not isinstance(value, str) or is_storable(value, MAX_METADATA_LENGTH)
    return value if is_finite and is_scalar and is_text else text


def add_age(parser: ArgumentParser) -> None:
    """Declare what commands take that delete old rows."""
    parser.add_argument(
        "--older-than",
        type=duration,
        required=True,
        metavar="DURATION",
        help="Age, in days, hours or minutes, such as 90d, 12h or 30m.",
    )
    parser.add_argument("--dry-run", action="store_true", help="Only count them.")
