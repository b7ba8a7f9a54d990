"""The flag that tells running code to stop: set by the watcher's thread, read at checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable

from django_run_cancel.models import Cancellation

ErrorFactory = Callable[[], Exception]


class StopFlag:
    """Whether the code of one execution is to stop, with which error, and who asked for it.

    Attributes:
        cancellation: The record of the cancellation, if that is why the flag has been set.
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
        """Return a new error for the code to raise, or None if it may go on."""
        make_error = self._make_error
        return None if make_error is None else make_error()

    def set(self, make_error: ErrorFactory, cancellation: Cancellation | None) -> None:
        """Tell the code to stop."""
        self.cancellation, self._make_error = cancellation, make_error
        self._on_set()

    def set_if_open(self, make_error: ErrorFactory, cancellation: Cancellation | None) -> None:
        """Tell the code to stop, unless it has left: nothing is interrupted then any more."""
        with self._lock:
            if self._is_open and not self.is_set:
                self.set(make_error, cancellation)

    def close(self) -> None:
        """Note that the code has left its run."""
        with self._lock:
            self._is_open = False

    def open(self) -> None:
        """Note that the code goes on with its run after all."""
        self._is_open = True

    def reset_lock(self) -> None:
        """Replace the lock in a forked process, where nobody would release it."""
        self._lock = threading.Lock()
