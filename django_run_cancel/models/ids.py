"""Public ids: a prefix, then 32 hexadecimal digits in the layout of a UUIDv7 (RFC 9562).

As they are ordered by time, inserts into a large table go to the end of its index.
"""

from __future__ import annotations

import secrets
import time

from django_run_cancel.conf import settings
from django_run_cancel.states import RunType

PREFIXES = {RunType.TASK.value: "tsk_", RunType.WORKFLOW.value: "wr_"}
OTHER_PREFIX = "run_"
CANCELLATION_PREFIX = "can_"


def uuid7_hex() -> str:
    """Return a UUIDv7 as 32 hexadecimal digits.

    The 12 bits after the millisecond hold its fraction, as RFC 9562 section 6.2 method 3 allows.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000
    variant_and_random = 0b10 << 62 | secrets.randbits(62)
    return f"{milliseconds << 80 | 0x7 << 76 | fraction << 64 | variant_and_random:032x}"


def new_run_id(run_type: str) -> str:
    """Return a new public id for a run of this type."""
    prefix = (PREFIXES | settings.ID_PREFIXES).get(run_type, OTHER_PREFIX)
    return prefix + uuid7_hex()


def new_cancellation_id() -> str:
    """Return a new public id for a cancellation."""
    return CANCELLATION_PREFIX + uuid7_hex()


def is_storable(text: str, max_length: int) -> bool:
    """Tell whether every supported database can store a text of at most ``max_length`` characters.

    PostgreSQL refuses NUL, and no driver can encode a lone surrogate.
    """
    if len(text) > max_length or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
