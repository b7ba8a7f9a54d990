"""Callbacks registered with ``on_cancel()``: each is called once, and has a deadline."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from asgiref.sync import iscoroutinefunction

from django_run_cancel.db.threads import call_in_thread
from django_run_cancel.execution.thread_context import NO_CONTEXT, ThreadContext, call_in

Callback = Callable[[], object] | Callable[[], Coroutine[Any, Any, object]]

DEFAULT_DEADLINE = 10.0
"""Seconds that a callback may take."""

logger = logging.getLogger(__name__)


class Callbacks:
    """Callbacks of one execution; from whichever threads, each is called once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = NO_CONTEXT
        self._later: list[tuple[Callback, float]] = []
        self._called: list[tuple[Callback, float, float | None, Future[Any]]] = []

    def add(self, callback: Callback, deadline: float) -> None:
        """Call it when the others are called, or now if they have been."""
        with self._lock:
            if self._begun:
                self._call(callback, deadline)
            else:
                self._later.append((callback, deadline))

    def begin(self, loop: asyncio.AbstractEventLoop | None, context: ThreadContext) -> None:
        """Call all, unless that has been done.

        Args:
            loop: Where coroutine functions run; without one, in a thread as functions do.
            context: What these threads enter.
        """
        with self._lock:
            if not self._begun:
                self._begun, self._loop, self._context = True, loop, context
                for callback, deadline in self._later:
                    self._call(callback, deadline)

    def wait(self) -> None:
        """Wait until each has ended, or its deadline has passed. Errors are logged."""
        with self._lock:
            called = list(self._called)
        for callback, deadline, until, future in called:
            # On a loop that was busy until now, it begins only now; and is cancelled in time.
            left = deadline if until is None else until - time.monotonic()
            try:
                error = future.exception(max(0, left))
            except (TimeoutError, CancelledError) as late:
                error = late
            if error is not None:
                logger.error(
                    "%r, called because its run was to stop, did not end well.",
                    callback,
                    exc_info=error,
                )

    def _call(self, callback: Callback, deadline: float) -> None:
        until: float | None = None
        if iscoroutinefunction(callback) and self._loop is not None:
            future = self._call_on_loop(callback, deadline, self._loop)
        else:
            until = time.monotonic() + deadline
            future = self._call_in_thread(callback, deadline)
        self._called.append((callback, deadline, until, future))

    def _call_in_thread(self, callback: Callback, deadline: float) -> Future[object]:
        return call_in_thread(partial(call_in, self._context, partial(_run, callback, deadline)))

    def _call_on_loop(
        self,
        callback: Callable[[], Coroutine[Any, Any, object]],
        deadline: float,
        loop: asyncio.AbstractEventLoop,
    ) -> Future[object]:
        async def call() -> object:
            return await _within(callback(), deadline)

        coroutine = call()
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:  # the loop has been closed
            coroutine.close()
            return self._call_in_thread(callback, deadline)


def _run(callback: Callback, deadline: float) -> object:
    result = callback()
    return asyncio.run(_within(result, deadline)) if asyncio.iscoroutine(result) else result


async def _within(awaitable: Awaitable[object], deadline: float) -> object:
    return await asyncio.wait_for(awaitable, deadline)
