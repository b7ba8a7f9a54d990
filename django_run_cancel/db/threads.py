"""Threads for calls that may block for long; each has database connections of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from django.db import connections

Result = TypeVar("Result")


def call_in_thread(function: Callable[[], Result]) -> Future[Result]:
    """Call a function in a thread that is made for it.

    The interpreter does not wait for the thread before it ends, as it would for that of a pool.

    Args:
        function: What to call. Its database connections are closed after it.

    Returns:
        What will hold the result or the error. It cannot be cancelled.
    """
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            connections.close_all()
            future.set_exception(error)
        else:
            connections.close_all()
            future.set_result(result)

    try:
        threading.Thread(target=call, name="run-cancel-call", daemon=True).start()
    except RuntimeError as error:  # there are no threads left
        future.set_exception(error)
    return future
