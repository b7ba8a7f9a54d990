"""Getting done what must be: although the database is away, although the task is cancelled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from asgiref.sync import sync_to_async
from django.db import Error, InterfaceError, InternalError, OperationalError, connections

from django_run_cancel.models import run_rows

RETRY_DELAYS = (0.1, 0.5, 1.0, 3.0)
"""Seconds between attempts to write while the database is away."""

logger = logging.getLogger(__name__)


def steadily(action: Callable[..., object], *args: Any) -> None:
    """Do something that may be repeated, although the database is away for a moment."""
    connection = connections[run_rows().db]
    for delay in RETRY_DELAYS:
        try:
            action(*args)
            return
        except (OperationalError, InterfaceError, InternalError):  # the last: it is read-only
            if connection.in_atomic_block:
                raise
            connection.close()
            time.sleep(delay)
    action(*args)


def despite(error: BaseException | None, action: Callable[..., None], *args: Any) -> None:
    """Do something of which a failure must not hide the error that came first."""
    try:
        steadily(action, *args)
    except Error:
        if error is None:
            raise
        logger.exception("The end of a run could not be recorded.")
    except BaseException:  # of a signal, such as that of a time limit, while it waited
        with suppress(Exception):
            steadily(action, *args)
        raise


def in_thread(function: Callable[..., None], *args: Any) -> Coroutine[Any, Any, None]:
    """Call a function in the thread where the ORM is used."""
    return sync_to_async(function)(*args)


async def to_the_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Await something that must not be left halfway, and be cancelled only then.

    Args:
        work: What to await. It may be called again: a loop that ends cancels all tasks.
    """
    task = asyncio.ensure_future(work())
    interruption = None
    while not task.done() or task.cancelled():
        if task.done():
            task = asyncio.ensure_future(work())
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        if isinstance(lost := task.exception(), Error):
            logger.error("The end of a run could not be recorded.", exc_info=lost)
        raise interruption
    task.result()
