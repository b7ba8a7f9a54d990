"""``StopFlag``: set by the watcher thread when running code must stop, read at checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable

from django_run_cancel.models import Cancellation

ErrorFactory = Callable[[], Exception]


class StopFlag:
    """Whether the code of one execution must stop, and the error that checkpoints raise then.

    Attributes:
        cancellation: The cancellation of the run; None if the code must stop for another reason.
    """

    def __init__(self, on_set: Callable[[], None]) -> None:
        self.cancellation: Cancellation | None = None
        self._on_set = on_set
        self._make_error: ErrorFactory | None = None
        self._is_open = True
        self._lock = threading.Lock()

    @property
    def is_set(self) -> bool:
        return self._make_error is not None

    def error(self) -> Exception | None:
        """Return a new error for the code to raise, or None if the flag is not set."""
        make_error = self._make_error
        return None if make_error is None else make_error()

    def set(self, make_error: ErrorFactory, cancellation: Cancellation | None) -> None:
        """Set the flag and call ``on_set``."""
        self.cancellation, self._make_error = cancellation, make_error
        self._on_set()

    def set_if_open(self, make_error: ErrorFactory, cancellation: Cancellation | None) -> None:
        """Set the flag, unless it is set or the code has left its block."""
        with self._lock:
            if self._is_open and not self.is_set:
                self.set(make_error, cancellation)

    def close(self) -> None:
        """Record that the code has left its block."""
        with self._lock:
            self._is_open = False

    def open(self) -> None:
        """Record that the code continues its run after ``take_back()``."""
        self._is_open = True

    def reset_lock(self) -> None:
        """Replace the lock in a forked process, where no thread is left to release it."""
        self._lock = threading.Lock()
