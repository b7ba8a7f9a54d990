"""SIGINT and SIGTERM for commands that finish what they are at before they end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupts(on_first: Callable[[], object] = lambda: None) -> Iterator[list[int]]:
    """Yield a list that is empty until SIGINT or SIGTERM arrives; a second one acts as always.

    Args:
        on_first: Called when the first signal arrives.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        restore()
        on_first()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # Only the main thread may handle signals. What the caller has had ignored, as a shell does
    # with Ctrl-C for a job in the background, stays ignored.
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
