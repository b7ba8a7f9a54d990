"""What running code uses: a gate at its start, checkpoints in between, and a truthful end."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self, cast

from asgiref.sync import sync_to_async
from django.db import Error, InterfaceError, OperationalError, connections
from django.db.models import Case, Q, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from django_run_cancel.callbacks import Callback, Callbacks
from django_run_cancel.evidence import record_stopped
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.models import AbstractRun, Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import WAITING, Outcome, RunStatus, StopState
from django_run_cancel.watcher import Row, rows_of, unwatch, watch

RETRY_DELAYS = (0.1, 0.5, 1.0, 3.0)
"""Seconds between attempts to write while the database is away."""

MAX_REASON_LENGTH = 10_000

logger = logging.getLogger(__name__)


def execution(
    run_id: str,
    *,
    take_over: bool | float = False,
    requeue_on: tuple[type[BaseException], ...] = (),
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
        requeue_on: Exceptions with which the executor is told to try again; they leave the run
            ``queued``.

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

    def __init__(
        self, run_id: str, take_over: bool | float, requeue_on: tuple[type[BaseException], ...]
    ) -> None:
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
        _steadily(self._start, timezone.now())
        watch(self)
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        unwatch(self)
        _despite(error, self._finish, error)
        self._call_back()
        _despite(error, self._acknowledge)

    async def __aenter__(self) -> Self:
        try:
            await _to_the_end(_in_thread(_steadily, self._start, timezone.now()))
        except asyncio.CancelledError as error:
            if hasattr(self, "run"):
                await _to_the_end(self._leave(error))
            raise
        self._loop = asyncio.get_running_loop()
        self._task = cast(asyncio.Task[Any], asyncio.current_task())
        self._cancelling = self._task.cancelling()
        watch(self)
        return self

    async def __aexit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        unwatch(self)
        interrupted, self._interrupted = self._interrupted, True  # from now on it cannot be
        ours = interrupted and self._task.uncancel() <= self._cancelling
        await _to_the_end(self._leave(error))
        if ours and self._stop is not None and isinstance(error, asyncio.CancelledError):
            raise self._stop() or error from error

    async def _leave(self, error: BaseException | None) -> None:
        await _in_thread(_despite, error, self._finish, error)
        # Not in the thread of the ORM: the callbacks may need that.
        await asyncio.to_thread(self._call_back)
        await _in_thread(_despite, error, self._acknowledge)

    def _start(self, now: datetime) -> None:
        # Running since this very moment: the answer to an attempt of ours was lost.
        startable = Q(status__in=[*WAITING, RunStatus.PAUSED])
        startable |= Q(status=RunStatus.RUNNING, heartbeat_at=now)
        started_at: Any = Coalesce("started_at", now)
        if self._take_over is not False:
            running = Q(status=RunStatus.RUNNING)
            if self._take_over is not True:
                running &= Q(heartbeat_at__lt=now - timedelta(seconds=self._take_over))
            startable |= running
            # What tells the execution that had the run that it no longer has it.
            started_at = Case(When(status=RunStatus.RUNNING, then=Value(now)), default=started_at)
        rows = rows_of(run_id=self.run_id)
        # The status comes last: MySQL assigns from left to right, and the case asks for the old.
        values = {"started_at": started_at, "heartbeat_at": now, "status": RunStatus.RUNNING}
        if not rows.filter(startable).update(**values):
            raise self._refusal()
        self.run = get_run_model()._base_manager.using(rows.db).get(run_id=self.run_id)
        self._started_at = self.run.started_at

    def _refusal(self) -> Exception:
        rows = rows_of(run_id=self.run_id)
        status, stop_state, cancellation = (
            rows.values_list("status", "stop_state", "cancellation").first() or [None] * 3
        )
        if status == RunStatus.RUNNING:
            return RunInProgress(self.run_id)
        if status != RunStatus.CANCELLED:
            return TransitionNotAllowed(self.run_id, status, RunStatus.RUNNING)
        if stop_state == StopState.STOPPING:
            # Cancelled while it waited to be tried again: its code had ended before that, and is
            # refused now.
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
        if isinstance(error, self._requeue_on):
            values = {"status": RunStatus.QUEUED, "queued_at": now}
        elif error is not None:
            values |= {"status": RunStatus.FAILED, "failure_reason": _describe(error)}
        rows = rows_of(pk=self.run.pk).filter(started_at=self._started_at)
        if rows.filter(status=RunStatus.RUNNING).update(**values):
            for name, value in values.items():
                setattr(self.run, name, value)
            return
        for row in rows.filter(status=RunStatus.CANCELLED).values_list(*Row._fields, named=True):
            self.cancelled = True
            self.seen(row)

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
        stop: Callable[[], Exception]
        if self.cancel_requested:
            return
        if row.started_at != self._started_at:
            stop = partial(RunInProgress, self.run_id)
        elif row.status == RunStatus.CANCELLED:
            stop = partial(RunCancelled, self.run_id)
        elif row.status in {RunStatus.TERMINATED, RunStatus.TIMED_OUT}:
            stop = partial(TransitionNotAllowed, self.run_id, row.status, RunStatus.RUNNING)
        else:
            return
        records = Cancellation.objects.using(rows_of().db)
        cancellation = records.filter(pk=row.cancellation).first()
        self.cancellation, self._stop = cancellation, stop
        self._callbacks.begin(self._loop)
        if self._loop is not None:
            with suppress(RuntimeError):  # closed
                self._loop.call_soon_threadsafe(self._interrupt)

    def forked(self) -> None:
        """Let a forked process, which has no watcher, start one at the next checkpoint."""
        self._callbacks, self._loop = Callbacks(), None
        if self._stop is None:
            self._stop = self._rejoin

    def _rejoin(self) -> None:
        self._stop = None
        watch(self)

    def _interrupt(self) -> None:
        if not self._interrupted:
            self._interrupted = True
            self._task.cancel()


def _describe(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()[:MAX_REASON_LENGTH]
    # What PostgreSQL cannot store.
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def _steadily(action: Callable[..., None], *args: Any) -> None:
    """Do something that may be repeated, although the database is away for a moment."""
    connection = connections[rows_of().db]
    for delay in RETRY_DELAYS:
        try:
            return action(*args)
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block:
                raise
            connection.close()
            time.sleep(delay)
    return action(*args)


def _despite(error: BaseException | None, action: Callable[..., None], *args: Any) -> None:
    """Do something of which a failure must not hide the error that came first."""
    try:
        _steadily(action, *args)
    except Error:
        if error is None:
            raise
        logger.exception("The end of a run could not be recorded.")


def _in_thread(function: Callable[..., None], *args: Any) -> Coroutine[Any, Any, None]:
    return sync_to_async(function)(*args)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await something that must not be left halfway, and be cancelled only then."""
    task = asyncio.ensure_future(work)
    interruption = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        task.exception()
        raise interruption
    task.result()
