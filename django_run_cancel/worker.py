"""What running code uses: a gate at its start, checkpoints in between, and a truthful end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self, cast
from uuid import UUID, uuid4

from django.db import Error, connections

from django_run_cancel.attempts import despite, in_thread, steadily, to_the_end
from django_run_cancel.callbacks import Callback, Callbacks, in_own_thread
from django_run_cancel.evidence import record_stopped
from django_run_cancel.exceptions import RunCancelError, RunCancelled
from django_run_cancel.holding import Holding, Requeue
from django_run_cancel.models import AbstractRun, Cancellation, run_rows
from django_run_cancel.states import StopState
from django_run_cancel.watcher import amid_a_statement, unwatch, watch


def execution(
    run_id: str,
    *,
    take_over: bool | float = False,
    requeue_on: Requeue = (),
) -> Execution:
    """Start a run, and record how it ends: to be entered with ``with`` or ``async with``.

    Entering starts the run, with one statement that only one of many can win. Leaving records how
    it ended: ``completed``, ``failed`` with the exception, or that the cancellation has been
    heeded. A status that ends a run is never overwritten. Both belong outside of
    ``transaction.atomic()``; the code in between may use it as it likes.

    Args:
        run_id: Public id of the run.
        take_over: Start the run although it is running: True always does, a number does so when
            its last heartbeat is that many seconds old. The execution that had it is stopped.
        requeue_on: Exceptions after which the executor tries again, or a function that is given
            the exception and tells whether it does. The run is left ``queued`` then.

    Returns:
        What to enter. ``async with`` also cancels the task that entered it, as
        ``asyncio.timeout()`` does, and turns that into ``RunCancelled``.

    Raises:
        RunCancelled: On entering or at a checkpoint: the run has been cancelled.
        RunInProgress: On entering: it is running. At a checkpoint: it has been taken over.
        TransitionNotAllowed: On entering: it has ended in another way, or is gone. At a checkpoint:
            it has been ended from outside in another way.
    """
    return Execution(run_id, take_over, requeue_on)


class Execution:
    """A run while its code is at work. Made by ``execution()``, for one ``with``.

    Attributes:
        cancelled: After leaving, whether the run was cancelled, however the code ended.
        cancellation: Once that is known, the record of who cancelled it and why.
    """

    def __init__(self, run_id: str, take_over: bool | float, requeue_on: Requeue) -> None:
        if not isinstance(run_id, str):
            raise TypeError(f"run_id must be the public id of a run, not {run_id!r}.")
        self.run_id = run_id
        self.cancelled = False
        self.cancellation: Cancellation | None = None
        self.alive = True
        self.beat_at = 0.0
        self._holding = Holding(run_id, take_over, requeue_on)
        self._stop: Callable[[], Exception | None] | None = None
        self._callbacks = Callbacks()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._interrupted = False
        self._pid = 0
        self._lock = threading.Lock()
        self._left = False

    @property
    def run(self) -> AbstractRun:
        """The run, as it was when it started."""
        return self._holding.run

    @property
    def execution_id(self) -> UUID | None:
        """What the row of the run has while this execution holds it."""
        return self._holding.execution_id

    def checkpoint(self) -> None:
        """Say that the code is alive, and raise if it is to stop.

        It looks at a flag and asks no database, so call it as often as you like. Once the run has
        been cancelled, each call raises.

        Raises:
            RunCancelled: The run has been cancelled.
            RunInProgress: Another execution has taken it over.
            TransitionNotAllowed: It has been ended from outside in another way.
        """
        self.alive = True
        if self._stop is not None and (error := self._stop()) is not None:
            raise error

    @property
    def cancel_requested(self) -> bool:
        """Whether ``checkpoint()`` would raise."""
        return self._stop is not None and self._stop() is not None

    def on_cancel(self, callback: Callback, *, deadline: float = 10.0) -> None:
        """Call something as soon as the run is to stop, not only at the next checkpoint.

        A function is called in a thread of its own. A coroutine function is too, unless the run
        was entered with ``async with``: then it runs on that event loop. Leaving waits for it. What
        it raises is logged.

        Args:
            callback: Called once, without arguments; now, if the run is to stop already.
            deadline: Seconds that it may take. A coroutine is cancelled then; for a function
                nobody waits any longer.
        """
        if not 0 < deadline < threading.TIMEOUT_MAX:
            raise ValueError(f"deadline must be seconds above 0, and finite, not {deadline!r}.")
        self._callbacks.add(callback, deadline)

    def __enter__(self) -> Self:
        execution_id = self._entering()
        try:
            steadily(self._holding.start, execution_id)
            watch(self)
        except (RunCancelError, Error):
            raise
        except BaseException as error:  # such as that of a signal
            self.__exit__(None, error, None)
            raise
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if amid_a_statement():
            # A generator that nobody has any more, collected where a database may be in use.
            in_own_thread(partial(self.__exit__, None, error, None))
            return
        if not self._leaving():
            return
        despite(error, self._finish, error)
        try:
            if self.cancel_requested:
                self._callbacks.begin(self._loop)
                self._wait_for_callbacks()
        finally:
            despite(error, self._acknowledge)

    def _wait_for_callbacks(self) -> None:
        try:
            self._callbacks.wait()
        except Exception:  # of a time limit, which this process survives, and so do they
            self._callbacks.wait()
            raise

    async def __aenter__(self) -> Self:
        execution_id = self._entering()
        try:
            await to_the_end(lambda: in_thread(steadily, self._holding.start, execution_id))
            self._loop = asyncio.get_running_loop()
            self._task = cast(asyncio.Task[Any], asyncio.current_task())
            self._cancelling = self._task.cancelling()
            watch(self)
        except (RunCancelError, Error):
            raise
        except BaseException as error:
            self._leaving()
            await to_the_end(partial(self._leave, error))
            raise
        return self

    async def __aexit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if not self._leaving():
            return
        interrupted, self._interrupted = self._interrupted, True  # from now on it cannot be
        ours = interrupted and self._task.uncancel() <= self._cancelling
        await to_the_end(partial(self._leave, error))
        if ours and self._stop is not None and isinstance(error, asyncio.CancelledError):
            raise self._stop() or error from error

    async def _leave(self, error: BaseException | None) -> None:
        await in_thread(despite, error, self._finish, error)
        if self.cancel_requested:
            self._callbacks.begin(self._loop)
            # In no thread of others: the callbacks may need those, and they may be busy.
            with suppress(RuntimeError):  # no threads are left, for callbacks neither
                await asyncio.shield(asyncio.wrap_future(in_own_thread(self._callbacks.wait)))
        await in_thread(despite, error, self._acknowledge)

    def hand_back(self) -> bool:
        """Leave the run queued, before the executor is told to try again.

        Only for executors that are told so from within the block: whoever is quick would find the
        run running otherwise, and the next try would be lost. Then leave the block.

        Returns:
            Whether that was done. Inside a transaction it is not, as nobody would see it before
            its end: then leaving the block does it.

        Raises:
            RunCancelled: The run has been cancelled: there is no other try.
            RunInProgress: Another execution has taken it over.
            TransitionNotAllowed: It has ended in another way.
        """
        if connections[run_rows().db].in_atomic_block:
            return False
        self._leaving()
        steadily(self._write, self._holding.hand_back)
        if self.cancelled:
            raise RunCancelled(self.run_id)
        if self.run.held_as is not None:
            raise self._holding.refusal()
        return True

    def take_back(self) -> None:
        """Go on with a run that was handed back, because its executor could not be told.

        Raises:
            RunCancelled: It has been cancelled meanwhile.
        """
        steadily(self._write, self._holding.take_back)
        self._left = False
        watch(self)
        if self.cancelled:
            raise RunCancelled(self.run_id)

    def _entering(self) -> UUID:
        if self._pid:
            raise RuntimeError("An execution is entered once: call execution() again.")
        self._pid = os.getpid()
        return uuid4()

    def _leaving(self) -> bool:
        """Let nobody stop it any more, and tell whether it is ours to say how it ends."""
        unwatch(self)
        with self._lock:
            self._left = True
        return self._pid == os.getpid()  # and not in a process that was forked meanwhile

    def _finish(self, error: BaseException | None) -> None:
        self._write(self._holding.finish, error)

    def _write(self, statement: Callable[..., Any], *args: Any) -> None:
        if (row := statement(*args)) is not None:
            self.cancelled = True
            if not self.cancel_requested:
                self._obey(partial(RunCancelled, self.run_id), _record(row))

    def _acknowledge(self) -> None:
        if self.cancelled:
            record_stopped([self.run_id], StopState.ACKNOWLEDGED)

    # What the watcher calls, from its thread

    def tick(self) -> None:
        """Note that the event loop is alive, if it is."""
        if self._loop is not None:
            with suppress(RuntimeError):  # closed
                self._loop.call_soon_threadsafe(setattr, self, "alive", True)

    def seen(self, row: Any) -> None:
        """Stop if the row of the run says so.

        Args:
            row: What the database holds now, a ``Row``.
        """
        if self.cancel_requested or (stop := self._holding.order(row)) is None:
            return
        record = _record(row)
        with self._lock:
            if not self._left:
                self._obey(stop, record)

    def _obey(self, stop: Callable[[], Exception], record: Cancellation | None) -> None:
        self.cancellation, self._stop = record, stop
        self._callbacks.begin(self._loop)
        if self._loop is not None:
            with suppress(RuntimeError):  # closed
                self._loop.call_soon_threadsafe(self._interrupt)

    def forked(self) -> None:
        """Let a forked process, which has no watcher, start one at the next checkpoint."""
        self._callbacks, self._loop, self._lock = Callbacks(), None, threading.Lock()
        if self._stop is None:
            self._stop = self._rejoin

    def _rejoin(self) -> None:
        self._stop = None
        watch(self)

    def _interrupt(self) -> None:
        if not self._interrupted:
            self._interrupted = True
            self._task.cancel()


def _record(row: Any) -> Cancellation | None:
    return Cancellation.objects.using(run_rows().db).filter(pk=row.cancellation).first()
