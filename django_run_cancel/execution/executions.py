"""``execution()`` and ``Execution``: checkpoints, callbacks, iteration and retries of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, TypeVar, overload
from uuid import UUID

from django_run_cancel.db.retry import retry_on_outage
from django_run_cancel.db.sessions import in_transaction
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import watcher
from django_run_cancel.execution.block import ExecutionBlock, Heartbeat, TakeOver
from django_run_cancel.execution.callbacks import DEFAULT_DEADLINE, Callback
from django_run_cancel.execution.ownership import Requeue
from django_run_cancel.models import AbstractRun, Cancellation, run_rows

Item = TypeVar("Item")


def execution(
    run_id: str,
    *,
    take_over: TakeOver = False,
    requeue_on: Requeue = (),
    heartbeat: Heartbeat = "checkpoint",
) -> Execution:
    """Start a run and record how it ends: use it with ``with`` or ``async with``.

    Entering starts the run in one atomic statement, so that of several workers only one starts it.
    Leaving records the end: ``completed``, ``failed`` with the exception, or, for a cancelled run,
    that its code has stopped. A terminal status is never overwritten. Enter and leave the block
    outside of ``transaction.atomic()``; the code inside may use transactions.

    Args:
        run_id: Public id of the run.
        take_over: Whether to start a run that another execution is running. True: always. A
            number: if its last heartbeat is that many seconds old. ``"if_dead"``, for a message
            that the queue has redelivered: wait until the other execution writes a heartbeat, or
            take over the run when it has missed three. The other execution is then stopped.
        requeue_on: Exception types after which the executor retries the task, or a function
            ``(exception) -> bool``. The run then becomes ``queued`` instead of ``failed``.
        heartbeat: What counts as a sign of life. ``"checkpoint"``: a heartbeat is written only if
            the code has passed a checkpoint (with ``async with``: or its event loop responds) since
            the last one. ``"process"``: while the process lives, for code without checkpoints.

    Returns:
        The context manager. ``async with`` also cancels the asyncio task that entered it when the
        run is cancelled, as ``asyncio.timeout()`` does, and raises ``RunCancelled`` on leaving.

    Raises:
        RunCancelled: On entering or at a checkpoint: the run has been cancelled.
        RunInProgress: On entering: another execution is running the run. At a checkpoint: another
            execution has taken over the run.
        TransitionNotAllowed: On entering: the run has ended without being cancelled, or does not
            exist. At a checkpoint: another process has ended the run without cancelling it.
    """
    return Execution(run_id, take_over, requeue_on, heartbeat)


class Execution(ExecutionBlock):
    """One attempt to execute a run. Created by ``execution()``; it can be entered once.

    Attributes:
        run_id: Public id of the run.
        cancelled: Whether the run was cancelled, however the code ended; set on leaving.
    """

    @property
    def run(self) -> AbstractRun:
        """The run, as read from the database at its start."""
        return self._ownership.run

    @property
    def execution_id(self) -> UUID | None:
        """The id in the row of the run while this execution owns it."""
        return self._ownership.execution_id

    @property
    def cancellation(self) -> Cancellation | None:
        """The cancellation of the run; None until this process has read it."""
        return self._flag.cancellation

    def checkpoint(self) -> None:
        """Raise an error if the run must stop; otherwise count as a sign of life.

        It reads a flag and makes no query, so it can be called often. After a cancellation, each
        call raises.

        Raises:
            RunCancelled: The run has been cancelled.
            RunInProgress: Another execution has taken over the run.
            TransitionNotAllowed: Another process has ended the run without cancelling it.
        """
        self._watch.code_is_alive = True
        if time.monotonic() > watcher.current.overdue_at:
            watcher.current.catch_up(self._watch)
        if (error := self._flag.error()) is not None:
            raise error

    @property
    def cancel_requested(self) -> bool:
        """Whether ``checkpoint()`` would raise."""
        if time.monotonic() > watcher.current.overdue_at:
            watcher.current.catch_up(self._watch)
        return self._flag.is_set

    @overload
    def each(self, items: AsyncIterable[Item]) -> AsyncIterator[Item]: ...

    @overload
    def each(self, items: Iterable[Item]) -> Iterator[Item]: ...

    def each(self, items: Any) -> Any:
        """Iterate over items, with a checkpoint before each item is fetched.

        Args:
            items: An iterable or async iterable.

        Returns:
            An iterator or async iterator, which raises what ``checkpoint()`` raises.
        """
        return self._aeach(items) if isinstance(items, AsyncIterable) else self._each(items)

    def _each(self, items: Iterable[Item]) -> Iterator[Item]:
        self.checkpoint()
        for item in items:
            yield item
            self.checkpoint()

    async def _aeach(self, items: AsyncIterable[Item]) -> AsyncIterator[Item]:
        self.checkpoint()
        async for item in items:
            yield item
            self.checkpoint()

    def on_cancel(self, callback: Callback, *, deadline: float = DEFAULT_DEADLINE) -> None:
        """Register a function to be called as soon as the run must stop.

        It does not wait for the next checkpoint: a function is called in a thread of its own. So is
        a coroutine function, unless the block was entered with ``async with``: then it runs on that
        event loop. Leaving the block waits for the callbacks, and logs their errors.

        Args:
            callback: Called once, without arguments; at once if the run must stop already.
            deadline: Maximum duration in seconds. After it, a coroutine is cancelled, and leaving
                the block no longer waits for a function.

        Raises:
            ValueError: The deadline is not a finite number above 0.
        """
        if not 0 < deadline < threading.TIMEOUT_MAX:
            raise ValueError(f"deadline must be seconds above 0, and finite, not {deadline!r}.")
        self._callbacks.add(callback, deadline)

    def hand_back(self) -> bool:
        """Set the run to ``queued`` before the code asks the executor for a retry.

        Call it if the retry is sent from within the block, and then leave the block. Otherwise a
        fast worker could receive the retry while the run is still ``running``, and drop it.

        Returns:
            True if the run is now queued. False inside a transaction, in which other workers would
            not see the change; then leaving the block requeues the run.

        Raises:
            RunCancelled: The run has been cancelled: do not send the retry.
            RunInProgress: Another execution has taken over the run.
            TransitionNotAllowed: The run has ended without being cancelled.
        """
        if in_transaction(run_rows().db):
            return False
        self._close()
        retry_on_outage(self._write, self._ownership.hand_back, using=run_rows().db)
        if self.cancelled:
            raise RunCancelled(self.run_id)
        if self.run.held_as is not None:
            raise self._ownership.ownership_error()
        return True

    def take_back(self) -> None:
        """Continue a run after ``hand_back()``, because the retry could not be sent.

        Raises:
            RunCancelled: The run has been cancelled in the meantime.
        """
        retry_on_outage(self._write, self._ownership.take_back, using=run_rows().db)
        self._flag.open()
        watcher.current.add(self._watch)
        if self.cancelled:
            raise RunCancelled(self.run_id)
