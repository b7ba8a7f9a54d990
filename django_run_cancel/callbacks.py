"""What running code wants to be called when it is to stop, with a deadline for each."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
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
        self._called: list[tuple[Callback, float, Future[Any]]] = []

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
        for callback, until, future in called:
            try:
                error = future.exception(max(0, until - time.monotonic()))
            except (TimeoutError, CancelledError) as late:
                error = late
            if error is not None:
                logger.error(
                    "%r, called because its run was to stop, did not end well.",
                    callback,
                    exc_info=error,
                )

    def _call(self, callback: Callback, deadline: float) -> None:
        until = time.monotonic() + deadline
        if not iscoroutinefunction(callback):
            future = _in_thread(callback)
        elif self._loop is None:
            future = _in_thread(partial(_run, callback, deadline))
        else:
            future = _on_loop(callback, deadline, self._loop)
        self._called.append((callback, until, future))


def _run(callback: Callable[[], Coroutine[Any, Any, object]], deadline: float) -> object:
    return asyncio.run(_within(callback, deadline))


async def _within(callback: Callable[[], Coroutine[Any, Any, object]], deadline: float) -> object:
    return await asyncio.wait_for(callback(), deadline)


def _on_loop(
    callback: Callable[[], Coroutine[Any, Any, object]],
    deadline: float,
    loop: asyncio.AbstractEventLoop,
) -> Future[object]:
    coroutine = _within(callback, deadline)
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # the loop has been closed
        coroutine.close()
        return _in_thread(partial(_run, callback, deadline))


def _in_thread(function: Callable[[], object]) -> Future[object]:
    future: Future[object] = Future()

    def work() -> None:
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
