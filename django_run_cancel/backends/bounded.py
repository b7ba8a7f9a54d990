"""Calls into clients of executors, with a timeout that the clients themselves do not have."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import TypeVar

from django.db import router, transaction

from django_run_cancel.db.threads import call_in_thread
from django_run_cancel.models import get_run_model

Result = TypeVar("Result")

MAX_WAITING = 8
"""Calls of a backend at a time, so that those which a dead server never answers do not pile up."""

_free: dict[str, BoundedSemaphore] = defaultdict(lambda: BoundedSemaphore(MAX_WAITING))


def call_bounded(function: Callable[[], Result], alias: str, timeout: float) -> Result:
    """Call a function in a thread of its own, and stop waiting for it after a while.

    What is not waited for any more goes on in its thread, and may still have an effect.

    Args:
        function: What to call. It has database connections of its own.
        alias: Of the backend.
        timeout: Seconds to wait.

    Returns:
        What the function returns.

    Raises:
        TimeoutError: It takes longer.
        Exception: Whatever the function raises.
    """
    until = time.monotonic() + timeout
    free = _free[alias]
    if free.acquire(timeout=timeout):
        future = call_in_thread(function)
        future.add_done_callback(lambda _: free.release())
        try:
            return future.result(until - time.monotonic())
        except TimeoutError:
            if future.done():
                raise
    raise TimeoutError(f"No answer within {timeout} s.")


def call_database(
    function: Callable[[], Result], using: str | None, alias: str, timeout: float
) -> Result:
    """Call a function that uses a database, bounded unless it is the database of the runs.

    That one needs no watching: without it nothing gets here. And what is done there belongs to the
    transaction that is open on its connection.

    Args:
        function: What to call.
        using: Alias of the database; None when Django does not know it.
        alias: Of the backend.
        timeout: Seconds to wait for another database.

    Raises:
        TimeoutError: It takes longer.
        Exception: Whatever the function raises.
    """
    if using == router.db_for_write(get_run_model()):
        with transaction.atomic(using=using):
            return function()
    return call_bounded(function, alias, timeout)
