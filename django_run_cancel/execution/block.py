"""``ExecutionBlock``: a context manager that starts a run and records how its code ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Self, cast, get_args
from uuid import UUID, uuid4

from django.db import Error

from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.db import retry
from django_run_cancel.db.sessions import given_back_to_pool, in_transaction
from django_run_cancel.db.threads import call_in_thread
from django_run_cancel.exceptions import RunCancelError, RunCancelled, RunInProgress
from django_run_cancel.execution import context, watcher
from django_run_cancel.execution.callbacks import Callbacks
from django_run_cancel.execution.flag import StopFlag
from django_run_cancel.execution.liveness import (
    Liveness,
    seconds_until_dead,
    wait_for_owner,
    wait_for_owner_async,
)
from django_run_cancel.execution.ownership import Ownership, Requeue
from django_run_cancel.execution.reentrancy import is_inside_statement
from django_run_cancel.execution.shield import (
    complete_despite_cancellation,
    in_orm_thread,
    retry_in_orm_thread,
)
from django_run_cancel.execution.thread_context import call_in, capture_thread_context
from django_run_cancel.models import Cancellation, run_rows
from django_run_cancel.states import StopState

TakeOver = bool | float | Literal["if_dead"]
Heartbeat = Literal["checkpoint", "process"]


class ExecutionBlock:
    """Base of ``Execution``: implements ``with`` and ``async with``."""

    def __init__(
        self,
        run_id: str,
        take_over: TakeOver,
        requeue_on: Requeue,
        heartbeat: Heartbeat,
        *,
        is_tracked: bool = False,
    ) -> None:
        if not isinstance(run_id, str):
            raise TypeError(f"run_id must be the public id of a run, not {run_id!r}.")
        if isinstance(take_over, str) and take_over != "if_dead":
            raise ValueError(f'take_over must be a bool, seconds or "if_dead", not {take_over!r}.')
        if heartbeat not in get_args(Heartbeat):
            raise ValueError(f'heartbeat must be "checkpoint" or "process", not {heartbeat!r}.')
        self.run_id = run_id
        self.cancelled = False
        self._take_over = take_over
        self._is_tracked = is_tracked  # a task of the host, which must not fail because of us
        self._end_delays: Sequence[float] = retry.RETRY_DELAYS
        self._is_end_recorded = False
        self._ownership = Ownership(run_id, requeue_on)
        self._callbacks = Callbacks()
        self._flag = StopFlag(self._on_flag)
        self._watch = watcher.Watch(
            self._ownership,
            self._flag,
            is_always_alive=heartbeat == "process",
            after_fork=self._after_fork,
        )
        self._pid = 0  # id of the process that entered the block
        self._is_interrupted = False
        # Set by the ``context`` module:
        self._outer: Any = None
        self._is_inside_block = False

    def __enter__(self) -> Self:
        execution_id = self._new_execution_id()
        try:
            try:
                self._start(execution_id)
            except RunInProgress:
                if self._take_over != "if_dead":
                    raise
                if wait_for_owner(self.run_id, self._start_delays) is Liveness.ALIVE:
                    raise
                self._start(execution_id)
            context.enter(self)
            watcher.current.add(self._watch)
        except (RunCancelError, Error):
            raise
        except BaseException as error:  # for example, raised by a signal handler
            self._end_delays = retry.BRIEF_DELAYS
            self.__exit__(None, error, None)
            raise
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        try:
            self._exit(error)
        except Error:
            raise
        except BaseException:  # raised by a signal handler, for example of a time limit
            if not self._is_end_recorded:
                self._end_delays = retry.BRIEF_DELAYS
                with suppress(Exception):
                    self._exit(error)
            raise

    def _exit(self, error: BaseException | None) -> None:
        context.leave(self)
        if isinstance(error, GeneratorExit) and (
            is_inside_statement() or self._is_in_another_transaction()
        ):
            # Closing or collecting a generator can interrupt a statement or a transaction of other
            # code. A write on the same connection would fail, or be rolled back with that code.
            call_in_thread(partial(call_in, self._watch.context, partial(self._leave, error)))
        else:
            self._leave(error)

    def _is_in_another_transaction(self) -> bool:
        return self._watch.row_is_visible and in_transaction(run_rows().db)

    def _leave(self, error: BaseException | None) -> None:
        if not self._close():
            return
        self._write_end(error, self._finish, error)
        try:
            if self._flag.is_set:
                self._callbacks.begin(self._watch.loop, self._watch.context)
                self._wait_for_callbacks()
        finally:
            self._write_end(error, self._acknowledge)
            self._is_end_recorded = True

    def _wait_for_callbacks(self) -> None:
        try:
            self._callbacks.wait()
        except Exception:  # a time limit that ends neither this process nor the callbacks
            self._callbacks.wait()
            raise

    async def __aenter__(self) -> Self:
        execution_id = self._new_execution_id()
        try:
            try:
                await self._astart(execution_id)
            except RunInProgress:
                if self._take_over != "if_dead":
                    raise
                if await wait_for_owner_async(self.run_id, self._start_delays) is Liveness.ALIVE:
                    raise
                await self._astart(execution_id)
            self._watch.loop = asyncio.get_running_loop()
            self._task = cast(asyncio.Task[Any], asyncio.current_task())
            self._cancelling = self._task.cancelling()
            context.enter(self)
            watcher.current.add(self._watch)
        except (RunCancelError, Error):
            raise
        except BaseException as error:
            self._end_delays = retry.BRIEF_DELAYS
            context.leave(self)
            self._close()
            await complete_despite_cancellation(partial(self._aleave, error))
            raise
        return self

    async def __aexit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        context.leave(self)
        if not self._close():
            return
        # ``_interrupt()`` does nothing once ``_is_interrupted`` is set.
        was_interrupted, self._is_interrupted = self._is_interrupted, True
        is_our_cancellation = was_interrupted and self._task.uncancel() <= self._cancelling
        await complete_despite_cancellation(partial(self._aleave, error))
        if is_our_cancellation and isinstance(error, asyncio.CancelledError):
            raise self._flag.error() or error from error

    async def _aleave(self, error: BaseException | None) -> None:
        await self._awrite_end(error, self._finish, error)
        if self._flag.is_set:
            self._callbacks.begin(self._watch.loop, self._watch.context)
            # Not in a thread of a pool: the callbacks may need that pool, and it may be full.
            with suppress(RuntimeError):  # no threads are left, so no callback was started
                await asyncio.shield(asyncio.wrap_future(call_in_thread(self._callbacks.wait)))
        await self._awrite_end(error, self._acknowledge)

    def _new_execution_id(self) -> UUID:
        if self._pid:
            raise RuntimeError("An execution can be entered only once. Call execution() again.")
        self._pid = os.getpid()
        return uuid4()

    @property
    def _start_delays(self) -> Sequence[float]:
        return retry.START_DELAYS if self._is_tracked else retry.RETRY_DELAYS

    def _start(self, execution_id: UUID) -> None:
        retry.retry_on_outage(
            self._start_once, execution_id, using=run_rows().db, delays=self._start_delays
        )

    async def _astart(self, execution_id: UUID) -> None:
        attempt = partial(in_orm_thread, self._start_once, execution_id)
        await retry_in_orm_thread(
            partial(complete_despite_cancellation, attempt),
            retry.Patience(run_rows().db, self._start_delays),
        )

    def _start_once(self, execution_id: UUID) -> None:
        using = run_rows().db
        with given_back_to_pool(using):
            self._watch.context = capture_thread_context()
            self._watch.row_is_visible = not in_transaction(using)
            take_over = self._take_over
            seconds = seconds_until_dead() if isinstance(take_over, str) else take_over
            self._ownership.start(execution_id, seconds)

    def _close(self) -> bool:
        """Stop watching for a cancellation; return whether this process records the end."""
        watcher.current.remove(self._watch)
        self._flag.close()
        return self._pid == os.getpid()  # False in a process forked inside the block

    def _finish(self, error: BaseException | None) -> None:
        self._write(self._ownership.finish, error)

    def _write(self, statement: Callable[..., Any], *args: Any) -> None:
        using = run_rows().db
        with given_back_to_pool(using):
            if (row := statement(*args)) is not None:
                self.cancelled = True
                if not self._flag.is_set:
                    records = Cancellation.objects.using(using)
                    record = records.filter(pk=row.cancellation).first()
                    self._flag.set(partial(RunCancelled, self.run_id), record)

    def _acknowledge(self) -> None:
        if self.cancelled:
            with given_back_to_pool(run_rows().db):
                record_stopped([self.run_id], StopState.ACKNOWLEDGED)

    def _write_end(
        self, error: BaseException | None, action: Callable[..., None], *args: Any
    ) -> None:
        retry.log_if_another_error_is_raised(
            action,
            *args,
            using=run_rows().db,
            is_only_logged=partial(self._is_only_logged, error),
            delays=self._end_delays,
        )

    async def _awrite_end(
        self, error: BaseException | None, action: Callable[..., None], *args: Any
    ) -> None:
        attempt = partial(in_orm_thread, action, *args)
        try:
            await retry_in_orm_thread(attempt, retry.Patience(run_rows().db, self._end_delays))
        except Error:
            if not await in_orm_thread(self._is_only_logged, error):
                raise
            retry.log_lost_end()

    def _is_only_logged(self, error: BaseException | None) -> bool:
        # Inside a transaction of the host, the error must propagate so that it is rolled back.
        return error is not None or (self._is_tracked and not in_transaction(run_rows().db))

    def _on_flag(self) -> None:
        self._callbacks.begin(self._watch.loop, self._watch.context)
        if self._watch.loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._watch.loop.call_soon_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        if not self._is_interrupted:
            self._is_interrupted = True
            self._task.cancel()

    def _after_fork(self) -> None:
        self._callbacks = Callbacks()  # only the parent process calls its callbacks
