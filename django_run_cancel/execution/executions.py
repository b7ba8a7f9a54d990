"""``execution()``, and ``Execution`` with its checkpoints, callbacks, iteration and retries."""

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
    """Start a run, and record how it ends: to be entered with ``with`` or ``async with``.

    Entering starts the run, with one statement that only one of many can win. Leaving records how
    it ended: ``completed``, ``failed`` with the exception, or that the cancellation has been
    heeded. A status that ends a run is never overwritten. Both belong outside of
    ``transaction.atomic()``; the code in between may use it as it likes.

    Args:
        run_id: Public id of the run.
        take_over: Whether to start the run although it is running. True: always. A number: when
            its last heartbeat is that many seconds old. ``"if_dead"``, for a message that was
            delivered again: wait until the execution that owns it has written a heartbeat or has
            missed three; then it is dead, and loses the run. Whoever loses it is stopped.
        requeue_on: Exceptions after which the executor tries again, or a function that is given
            the exception and tells whether it does. The run is left ``queued`` then.
        heartbeat: What proves that the code is alive, so that a heartbeat is written:
            ``"checkpoint"`` means a checkpoint since the last one (with ``async with``, also the
            event loop); ``"process"`` means the process alone, for code without checkpoints.

    Returns:
        What to enter. ``async with`` also cancels the task that entered it, as
        ``asyncio.timeout()`` does, and turns that into ``RunCancelled``.

    Raises:
        RunCancelled: On entering or at a checkpoint: the run has been cancelled.
        RunInProgress: On entering: it is running. At a checkpoint: it has been taken over.
        TransitionNotAllowed: On entering: it has ended in another way, or is gone. At a checkpoint:
            it has been ended from outside in another way.
    """
    return Execution(run_id, take_over, requeue_on, heartbeat)


class Execution(ExecutionBlock):
    """A run while its code is at work. Made by ``execution()``, for one ``with``.

    Attributes:
        run_id: Public id of the run.
        cancelled: After leaving, whether the run was cancelled, however the code ended.
    """

    @property
    def run(self) -> AbstractRun:
        """The run, as it was when it started."""
        return self._ownership.run

    @property
    def execution_id(self) -> UUID | None:
        """The id in the row of the run while this execution owns it."""
        return self._ownership.execution_id

    @property
    def cancellation(self) -> Cancellation | None:
        """Once that is known, the record of who cancelled the run and why."""
        return self._flag.cancellation

    def checkpoint(self) -> None:
        """Say that the code is alive, and raise if it is to stop.

        It looks at a flag and asks no database, so call it as often as you like. Once the run has
        been cancelled, each call raises.

        Raises:
            RunCancelled: The run has been cancelled.
            RunInProgress: Another execution has taken it over.
            TransitionNotAllowed: It has been ended from outside in another way.
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
        """Iterate with a checkpoint before each item is fetched.

        Args:
            items: What to iterate over, with ``for`` or, if it is an async iterable, ``async for``.

        Returns:
            An iterator of the same kind, which raises what ``checkpoint()`` raises.
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
        """Call a function as soon as the run is to stop, not only at the next checkpoint.

        A function is called in a thread of its own. A coroutine function is too, unless the run
        was entered with ``async with``: then it runs on that event loop. Leaving waits for it. What
        it raises is logged.

        Args:
            callback: Called once, without arguments; now, if the run is to stop already.
            deadline: Seconds that it may take. A coroutine is cancelled then; for a function
                nobody waits any longer.

        Raises:
            ValueError: The deadline is not a finite number above 0.
        """
        if not 0 < deadline < threading.TIMEOUT_MAX:
            raise ValueError(f"deadline must be seconds above 0, and finite, not {deadline!r}.")
        self._callbacks.add(callback, deadline)

    def hand_back(self) -> bool:
        """Leave the run queued, before the executor is told to try again.

        Only for executors that are told so from within the block: a quick worker would find the
        run running otherwise, and the next try would be lost. Then leave the block.

        Returns:
            Whether that was done. Inside a transaction it is not, as nobody would see it before
            its end: then leaving the block does it.

        Raises:
            RunCancelled: The run has been cancelled: there is no other try.
            RunInProgress: Another execution has taken it over.
            TransitionNotAllowed: It has ended in another way.
        """
        if in_transaction(run_rows().db):
            return False
        self._close()
        retry_on_outage(self._write, self._ownership.hand_back, using=run_rows().db)
        if self.cancelled:
            raise RunCancelled(self.run_id)
        if self.run.held_as is not None:
            raise self._ownership.refusal()
        return True

    def take_back(self) -> None:
        """Go on with a run that was handed back, because its executor could not be told.

        Raises:
            RunCancelled: It has been cancelled meanwhile.
        """
        retry_on_outage(self._write, self._ownership.take_back, using=run_rows().db)
        self._flag.open()
        watcher.current.add(self._watch)
        if self.cancelled:
            raise RunCancelled(self.run_id)
