"""Awaiting writes in asyncio code that must finish although the task is cancelled."""

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
    """Call a function in the thread where the ORM is used."""
    return sync_to_async(function)(*args)


async def complete_despite_cancellation(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Await a write to its end, and only then pass on a cancellation of the current task.

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


async def retry_in_orm_thread(
    attempt: Callable[[], Coroutine[Any, Any, Result]], patience: Patience
) -> Result:
    """Do what ``retry_on_outage()`` does, and let others use the ORM and the loop meanwhile.

    Args:
        attempt: Awaited once or more often.
        patience: With it.

    Returns:
        What it returns.
    """
    while True:
        try:
            return await attempt()
        except OUTAGES as error:
            delay = await in_orm_thread(patience.pause_after, error)
        await asyncio.sleep(delay)
