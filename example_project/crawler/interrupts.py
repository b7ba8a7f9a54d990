"""Ending in order, whichever signal asks for it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], object] | signal.Handlers


def handle_ends(handler: Handler) -> None:
    """Handle everything that asks for an end in the same way: Ctrl-C, and what closes terminals."""
    for number in ENDS:
        signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Stop what is being done."""
    raise KeyboardInterrupt
