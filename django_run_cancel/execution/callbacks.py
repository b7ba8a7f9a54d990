"""Callbacks registered with ``on_cancel()``: each is called once, and has a timeout."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from asgiref.sync import iscoroutinefunction

from django_run_cancel.db.threads import call_in_thread
from django_run_cancel.execution.thread_context import NO_CONTEXT, ThreadContext, call_in

Callback = Callable[[], object] | Callable[[], Coroutine[Any, Any, object]]

DEFAULT_DEADLINE = 10.0
"""Maximum duration of a callback, in seconds."""

logger = logging.getLogger(__name__)


class Callbacks:
    """The callbacks of one execution. Thread-safe: each callback is called once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = NO_CONTEXT
        self._registered: deque[tuple[Callback, float]] = deque()
        self._called: list[tuple[Callback, float, float | None, Future[Any]]] = []

    def add(self, callback: Callback, deadline: float) -> None:
        """Register a callback, or call it at once if the others have already been called."""
        with self._lock:
            if self._has_started:
                self._call(callback, deadline)
            else:
                self._registered.append((callback, deadline))

    def begin(self, loop: asyncio.AbstractEventLoop | None, context: ThreadContext) -> None:
        """Call all registered callbacks, each once. A second call continues an interrupted one.

        Args:
            loop: Event loop that runs coroutine functions; if None, each runs in a thread.
            context: Context manager factory that these threads enter.
        """
        with self._lock:
            self._has_started, self._loop, self._context = True, loop, context
            while self._registered:
                self._call(*self._registered.popleft())

    def wait(self) -> None:
        """Wait until each callback has ended or timed out, and log errors."""
        with self._lock:
            called = list(self._called)
        for callback, deadline, deadline_at, future in called:
            # A coroutine may start only now, if its loop was blocked; it has a timeout of its own.
            timeout = deadline if deadline_at is None else deadline_at - time.monotonic()
            try:
                error = future.exception(timeout)
            except (TimeoutError, CancelledError) as reason:
                error = reason
            if error is not None:
                logger.error(
                    "%r, an on_cancel() function, has failed.",
                    callback,
                    exc_info=error,
                )

    def _call(self, callback: Callback, deadline: float) -> None:
        deadline_at: float | None = None
        if iscoroutinefunction(callback) and self._loop is not None:
            future = self._call_on_loop(callback, deadline, self._loop)
        else:
            deadline_at = time.monotonic() + deadline
            future = self._call_in_thread(callback, deadline)
        self._called.append((callback, deadline, deadline_at, future))

    def _call_in_thread(self, callback: Callback, deadline: float) -> Future[object]:
        return call_in_thread(partial(call_in, self._context, partial(_run, callback, deadline)))

    def _call_on_loop(
        self,
        callback: Callable[[], Coroutine[Any, Any, object]],
        deadline: float,
        loop: asyncio.AbstractEventLoop,
    ) -> Future[object]:
        async def call() -> object:
            return await _with_timeout(callback(), deadline)

        coroutine = call()
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:  # the loop has been closed
            coroutine.close()
            return self._call_in_thread(callback, deadline)


def _run(callback: Callback, deadline: float) -> object:
    result = callback()
    return asyncio.run(_with_timeout(result, deadline)) if asyncio.iscoroutine(result) else result


async def _with_timeout(awaitable: Awaitable[object], deadline: float) -> object:
    return await asyncio.wait_for(awaitable, deadline)
