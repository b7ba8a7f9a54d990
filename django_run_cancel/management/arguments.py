"""Kinds of arguments that several commands take."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from datetime import timedelta


def duration(text: str) -> timedelta:
    """Read a number of days or hours, such as ``90d`` or ``12h``.

    Raises:
        ArgumentTypeError: It is none.
    """
    match = re.fullmatch(r"([0-9]{1,5})([dh])", text)
    if not match or not int(match[1]):
        raise ArgumentTypeError(f"{text!r} is not a duration such as 90d or 12h")
    return timedelta(**{"days" if match[2] == "d" else "hours": int(match[1])})
