"""Helpers for asyncio code whose database writes must finish although its task is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import Error

from django_run_cancel.db.retry import OUTAGES, Patience

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def in_orm_thread(function: Callable[..., Result], *args: Any) -> Coroutine[Any, Any, Result]:
    """Return a coroutine that calls a function in the thread in which the ORM may be used."""
    return sync_to_async(function)(*args)


async def complete_despite_cancellation(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Await a write to its end, and only then raise a cancellation of the current task.

    Args:
        work: Coroutine function that writes. It is called again if its own task is cancelled, as an
            event loop does with all tasks when it shuts down.
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


async def retry_in_orm_thread(
    attempt: Callable[[], Coroutine[Any, Any, Result]], patience: Patience
) -> Result:
    """Async version of ``retry_on_outage()``: waits without blocking the loop or the ORM thread.

    Args:
        attempt: Coroutine function; called again after an outage.
        patience: Limits the number and the duration of the attempts.

    Returns:
        The result of ``attempt``.
    """
    while True:
        try:
            return await attempt()
        except OUTAGES as error:
            delay = await in_orm_thread(patience.pause_after, error)
        await asyncio.sleep(delay)
