"""What running code wants to be called when it is to stop, with a deadline for each."""

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
from django.db import connections

Callback = Callable[[], object] | Callable[[], Coroutine[Any, Any, object]]

logger = logging.getLogger(__name__)


class Callbacks:
    """Callbacks of one execution; from whichever threads, each is called once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._later: list[tuple[Callback, float]] = []
        self._called: list[tuple[Callback, float, float | None, Future[Any]]] = []

    def add(self, callback: Callback, deadline: float) -> None:
        """Call it when the others are called, or now if they have been."""
        with self._lock:
            if self._begun:
                self._call(callback, deadline)
            else:
                self._later.append((callback, deadline))

    def begin(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Call all, unless that has been done. Coroutine functions run on the loop, if any."""
        with self._lock:
            if not self._begun:
                self._begun, self._loop = True, loop
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
            future = _on_loop(callback, deadline, self._loop)
        else:
            until = time.monotonic() + deadline
            future = in_own_thread(partial(_run, callback, deadline))
        self._called.append((callback, deadline, until, future))


def _run(callback: Callback, deadline: float) -> object:
    result = callback()
    return asyncio.run(_within(result, deadline)) if asyncio.iscoroutine(result) else result


async def _within(awaitable: Awaitable[object], deadline: float) -> object:
    return await asyncio.wait_for(awaitable, deadline)


def _on_loop(
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
        return in_own_thread(partial(_run, callback, deadline))


def in_own_thread(function: Callable[[], object]) -> Future[object]:
    """Call a function in a thread that is made for it, and that nobody waits for at the end."""
    future: Future[object] = Future()

    def work() -> None:
        future.set_running_or_notify_cancel()  # from now on nobody can cancel it
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - logged by who waits
            connections.close_all()
            future.set_exception(error)
        else:
            connections.close_all()
            future.set_result(result)

    # Not of a pool: before it ends, the interpreter would wait for that.
    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError as error:  # there are no threads left
        future.set_exception(error)
    return future
