"""Calls with a timeout, for clients of executors that have none themselves."""

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
"""Maximum concurrent calls per backend: limits the threads that wait for a dead server."""

_free_slots: dict[str, BoundedSemaphore] = defaultdict(lambda: BoundedSemaphore(MAX_WAITING))


def call_bounded(function: Callable[[], Result], alias: str, timeout: float) -> Result:
    """Call a function in a new thread, and wait for its result until the timeout.

    After the timeout the function continues in its thread, and may still have an effect.

    Args:
        function: The function. It uses its own database connections.
        alias: Alias of the backend.
        timeout: Seconds to wait.

    Returns:
        The result of the function.

    Raises:
        TimeoutError: The function takes longer than the timeout.
        Exception: Any exception of the function.
    """
    deadline = time.monotonic() + timeout
    free_slots = _free_slots[alias]
    if free_slots.acquire(timeout=timeout):
        future = call_in_thread(function)
        future.add_done_callback(lambda _: free_slots.release())
        try:
            return future.result(deadline - time.monotonic())
        except TimeoutError:
            if future.done():
                raise
    raise TimeoutError(f"No answer within {timeout} s.")


def call_database(
    function: Callable[[], Result], using: str | None, alias: str, timeout: float
) -> Result:
    """Call a function that queries a database, with a timeout unless it is the runs' database.

    The runs' database needs no timeout: if it were unavailable, the caller could not have read the
    runs. The queries must also be part of a transaction that is open on its connection.

    Args:
        function: The function.
        using: Alias of the database; None if it is not in ``DATABASES``.
        alias: Alias of the backend.
        timeout: Seconds to wait for another database.

    Raises:
        TimeoutError: The function takes longer than the timeout.
        Exception: Any exception of the function.
    """
    if using == router.db_for_write(get_run_model()):
        with transaction.atomic(using=using):
            return function()
    return call_bounded(function, alias, timeout)
