"""``call_in_thread()``: a new thread for a call that may block, with its own connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from django.db import connections

Result = TypeVar("Result")


def call_in_thread(function: Callable[[], Result]) -> Future[Result]:
    """Call a function in a new daemon thread.

    Unlike with ``ThreadPoolExecutor``, the interpreter does not wait for the thread at exit.

    Args:
        function: The function. The thread closes its database connections afterwards.

    Returns:
        A future of the result, which cannot be cancelled. If no thread can be started, it holds
        the RuntimeError.
    """
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - future.result() raises it
            connections.close_all()
            future.set_exception(error)
        else:
            connections.close_all()
            future.set_result(result)

    try:
        threading.Thread(target=call, name="run-cancel-call", daemon=True).start()
    except RuntimeError as error:  # no more threads can be started
        future.set_exception(error)
    return future
