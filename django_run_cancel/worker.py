"""What running code uses: a gate at its start, checkpoints in between, and a truthful end."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Self, cast
from uuid import UUID, uuid4

from django.db import Error
from django.db.models import Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from django_run_cancel.attempts import despite, in_thread, steadily, to_the_end
from django_run_cancel.callbacks import Callback, Callbacks
from django_run_cancel.evidence import record_stopped
from django_run_cancel.exceptions import (
    RunCancelError,
    RunCancelled,
    RunInProgress,
    TransitionNotAllowed,
)
from django_run_cancel.models import (
    AbstractRun,
    Cancellation,
    CancellationItem,
    get_run_model,
    run_rows,
)
from django_run_cancel.states import TERMINAL, WAITING, Outcome, RunStatus, StopState
from django_run_cancel.watcher import Row, unwatch, watch

Requeue = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]

MAX_REASON_LENGTH = 10_000

logger = logging.getLogger(__name__)


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
    """A run while its code is at work. Made by ``execution()``.

    Attributes:
        run: The run, as it was when it started.
        cancelled: After leaving, whether the run was cancelled, however the code ended.
        cancellation: Once that is known, the record of who cancelled it and why.
    """

    run: AbstractRun

    def __init__(self, run_id: str, take_over: bool | float, requeue_on: Requeue) -> None:
        self.run_id = run_id
        self.cancelled = False
        self.cancellation: Cancellation | None = None
        self.alive = True
        self.beat_at = 0.0
        self._take_over = take_over
        self._requeue_on = requeue_on
        self._stop: Callable[[], Exception | None] | None = None
        self._callbacks = Callbacks()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._interrupted = False
        self._id: UUID | None = None
        self._pid = 0
        self._lock = threading.Lock()
        self._left = False
        self._ended_as = ""

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
        self._callbacks.add(callback, deadline)

    def __enter__(self) -> Self:
        try:
            steadily(self._start, uuid4())
            watch(self)
        except (RunCancelError, Error):
            raise
        except BaseException as error:  # such as that of a signal
            self.__exit__(None, error, None)
            raise
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if not self._leaving():
            return
        despite(error, self._finish, error)
        try:
            self._call_back()
        finally:
            despite(error, self._acknowledge)

    async def __aenter__(self) -> Self:
        try:
            await to_the_end(in_thread(steadily, self._start, uuid4()))
            self._loop = asyncio.get_running_loop()
            self._task = cast(asyncio.Task[Any], asyncio.current_task())
            self._cancelling = self._task.cancelling()
            watch(self)
        except (RunCancelError, Error):
            raise
        except BaseException as error:
            if self._leaving():
                await to_the_end(self._leave(error))
            raise
        return self

    async def __aexit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if not self._leaving():
            return
        interrupted, self._interrupted = self._interrupted, True  # from now on it cannot be
        ours = interrupted and self._task.uncancel() <= self._cancelling
        await to_the_end(self._leave(error))
        if ours and self._stop is not None and isinstance(error, asyncio.CancelledError):
            raise self._stop() or error from error

    async def _leave(self, error: BaseException | None) -> None:
        await in_thread(despite, error, self._finish, error)
        try:
            # Not in the thread of the ORM: the callbacks may need that.
            await asyncio.to_thread(self._call_back)
        finally:
            await in_thread(despite, error, self._acknowledge)

    def _leaving(self) -> bool:
        """Let nobody stop it any more, and tell whether it is ours to say how it ends."""
        unwatch(self)
        with self._lock:
            self._left = True
        return self._pid == os.getpid()  # and not in a process that was forked meanwhile

    def _start(self, execution_id: UUID) -> None:
        self._id, self._pid, now = execution_id, os.getpid(), timezone.now()
        startable = Q(status__in=[*WAITING, RunStatus.PAUSED])
        # Ours already: the answer to an attempt was lost.
        startable |= Q(status=RunStatus.RUNNING, execution_id=execution_id)
        if self._take_over is not False:
            running = Q(status=RunStatus.RUNNING)
            if self._take_over is not True:
                running &= Q(heartbeat_at__lt=now - timedelta(seconds=self._take_over))
            startable |= running
        rows = run_rows(run_id=self.run_id)
        started = rows.filter(startable).update(
            status=RunStatus.RUNNING,
            started_at=Coalesce("started_at", now),
            heartbeat_at=now,
            # Also tells an execution that had the run that it no longer has it.
            execution_id=execution_id,
        )
        if not started:
            raise self._refusal()
        self.run = get_run_model()._base_manager.using(rows.db).get(run_id=self.run_id)

    def _refusal(self) -> Exception:
        rows = run_rows(run_id=self.run_id)
        status, stop_state, holder, cancellation = (
            rows.values_list("status", "stop_state", "execution_id", "cancellation").first()
            or [None] * 4
        )
        if status == RunStatus.RUNNING:
            return RunInProgress(self.run_id)
        if status != RunStatus.CANCELLED:
            return TransitionNotAllowed(self.run_id, status, RunStatus.RUNNING)
        if stop_state == StopState.STOPPING and holder is None:
            # Cancelled while it waited to be tried again: its code had handed it back before that,
            # and is refused now.
            items = CancellationItem.objects.using(rows.db).filter(
                cancellation=cancellation,
                run_id=self.run_id,
                outcome=Outcome.CANCELLED,
                previous_status__in=WAITING,
            )
            if items.exists():
                record_stopped([self.run_id], StopState.ACKNOWLEDGED)
        return RunCancelled(self.run_id)

    def _finish(self, error: BaseException | None) -> None:
        """Write how the code ended, unless the run has been ended already."""
        now = timezone.now()
        values: dict[str, Any] = {"status": RunStatus.COMPLETED, "finished_at": now}
        if error is not None and self._is_tried_again(error):
            values = {"status": RunStatus.QUEUED, "queued_at": now, "execution_id": None}
        elif error is not None:
            values |= {"status": RunStatus.FAILED, "failure_reason": _describe(error)}
        rows = run_rows(run_id=self.run_id, execution_id=self._id)
        if rows.filter(status=RunStatus.RUNNING).update(**values):
            for name, value in values.items():
                setattr(self.run, name, value)
            return
        # Queued or paused while the code was at work: it has handed it back now.
        rows.filter(status__in=[*WAITING, RunStatus.PAUSED]).update(execution_id=None)
        for row in rows.filter(status=RunStatus.CANCELLED).values_list(*Row._fields, named=True):
            self.cancelled = True
            if not self.cancel_requested:
                self._obey(partial(RunCancelled, self.run_id), _record(row))

    def _is_tried_again(self, error: BaseException) -> bool:
        if isinstance(self._requeue_on, type | tuple):
            return isinstance(error, self._requeue_on)
        try:
            return self._requeue_on(error)
        except Exception:
            logger.exception("requeue_on of run %s is broken: the run has failed.", self.run_id)
            return False

    def _call_back(self) -> None:
        if self.cancel_requested:
            self._callbacks.begin(self._loop)
            self._callbacks.wait()

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
        if self.cancel_requested or (stop := self._order(row)) is None:
            return
        record = _record(row)
        with self._lock:
            if not self._left:
                self._obey(stop, record)

    def _order(self, row: Any) -> Callable[[], Exception] | None:
        if row.execution_id != self._id:
            return partial(RunInProgress, self.run_id)
        if row.status == RunStatus.CANCELLED:
            return partial(RunCancelled, self.run_id)
        if row.status in TERMINAL and row.status != self.run.status:
            # Not at first sight: it may be the code itself that is about to note it in ``run``.
            before, self._ended_as = self._ended_as, row.status
            if before == row.status:
                return partial(TransitionNotAllowed, self.run_id, row.status, RunStatus.RUNNING)
        return None

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


def _describe(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()[:MAX_REASON_LENGTH]
    # What PostgreSQL cannot store.
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()
