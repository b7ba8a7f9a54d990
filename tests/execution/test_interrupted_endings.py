"""Ends of runs that are interrupted: by signals, outages, or the end of the event loop."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import (
    InternalError,
    OperationalError,
    connections,
    transaction,
)

from django_run_cancel.db import retry
from django_run_cancel.execution import block, execution, ownership, shield, watcher
from django_run_cancel.models import run_rows
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import (
    PATIENCE,
    cancel,
    elsewhere,
    fresh,
)
from tests.helpers import make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TimeLimit(Exception):
    """As executors raise it from the handler of a signal, wherever the code is."""


def run_on_a_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine as a program does. The thread that asgiref has for the ORM then stays."""
    try:
        return elsewhere(lambda: asyncio.run(main()))
    finally:
        elsewhere(lambda: asyncio.run(sync_to_async(connections.close_all)()))


def exit_interrupted_at(number: int, run: Any, *, is_cancelled: bool) -> bool:
    """Execute a run, and raise at one of the calls that end it; return whether there were so many.

    Python calls the handler of a signal when a function begins, and a trace function can raise
    there. Not in a generator: that may be called to close it, and nobody would get the error.
    """
    calls = count(1)
    folder = str(Path(block.__file__).parents[1])

    def interrupt(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        is_call = event == "call" and not code.co_flags & inspect.CO_GENERATOR
        is_first = code is block.ExecutionBlock.__exit__.__code__
        is_ours = code.co_filename.startswith(folder)
        if is_call and is_ours and not is_first and next(calls) == number:
            raise TimeLimit

    before = sys.gettrace()
    try:
        with execution(run.run_id):
            if is_cancelled:
                cancel(run)
            sys.settrace(interrupt)
    except TimeLimit:
        return True
    finally:
        sys.settrace(before)
    return False


class TestEnding:
    @pytest.mark.parametrize("is_cancelled", [False, True])
    def test_interrupted_at_each_call(self, *, is_cancelled: bool) -> None:
        for number in count(1):
            run = make_run()
            was_interrupted = exit_interrupted_at(number, run, is_cancelled=is_cancelled)
            run = fresh(run)
            if is_cancelled:
                assert run.stop_state == StopState.ACKNOWLEDGED, number
            else:
                assert run.status == RunStatus.COMPLETED, number
            if not was_interrupted:
                assert number > 10
                break

    def test_interrupted_while_it_is_written(self, monkeypatch: Any) -> None:
        """By a signal, for example because somebody holds a lock."""
        run = make_run()
        real, calls = ownership.Ownership.finish, []

        def finish(held: Any, error: Any) -> Any:
            calls.append(error)
            if len(calls) == 1:
                raise SystemExit(143)
            return real(held, error)

        monkeypatch.setattr(ownership.Ownership, "finish", finish)
        with pytest.raises(SystemExit), execution(run.run_id):
            pass
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.parametrize("kind", [TimeLimit, SystemExit])
    def test_a_signal_while_it_is_tried_again(self, monkeypatch: Any, kind: Any) -> None:
        """Such as that of a time limit of the executor, which is an exception as any other."""
        run, real, tries = make_run(), ownership.Ownership.finish, []

        def finish(held: Any, error: Any) -> Any:
            tries.append(error)
            if len(tries) == 1:
                raise OperationalError("away")
            return real(held, error)

        def sleep(seconds: float) -> None:
            raise kind

        monkeypatch.setattr(ownership.Ownership, "finish", finish)
        with pytest.raises(kind), execution(run.run_id):
            monkeypatch.setattr(retry.time, "sleep", sleep)
        assert tries == [None, None]
        assert fresh(run).status == RunStatus.COMPLETED

    def test_time_limit_while_it_waits_for_callbacks(self) -> None:
        run, states = make_run(), []
        begun = threading.Event()

        def limit(signum: int, frame: Any) -> None:
            raise TimeLimit

        def tidy_up() -> None:
            begun.set()
            time.sleep(0.5)
            states.append(fresh(run).stop_state)

        before = signal.signal(signal.SIGALRM, limit)
        try:
            with pytest.raises(TimeLimit), execution(run.run_id) as executed:
                executed.on_cancel(tidy_up)
                cancel(run)
                assert begun.wait(PATIENCE)
                signal.setitimer(signal.ITIMER_REAL, 0.1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert states == [StopState.STOPPING]
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_task_that_is_cancelled_meanwhile(self, caplog: Any) -> None:
        """Nobody gets the error then: it is logged."""

        async def away() -> None:
            await asyncio.sleep(0.05)
            raise OperationalError("away")

        async def main() -> None:
            task = asyncio.ensure_future(shield.complete_despite_cancellation(away))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        (record,) = caplog.records
        assert "could not be recorded" in record.message
        assert isinstance(record.exc_info[1], OperationalError)

    def test_in_a_transaction__is_not_tried_again(self) -> None:
        """The database has undone what the caller did in it, or will."""
        calls: list[int] = []

        def action() -> None:
            calls.append(1)
            raise OperationalError("deadlock")

        with transaction.atomic(), pytest.raises(OperationalError):
            retry.retry_on_outage(action, using="default")
        assert calls == [1]

    def test_while_the_database_is_read_only(self, monkeypatch: Any) -> None:
        """As for a moment during a failover; psycopg calls that an internal error."""
        monkeypatch.setattr(retry, "RETRY_DELAYS", [0.01])
        calls: list[int] = []

        def action() -> None:
            calls.append(1)
            if len(calls) == 1:
                raise InternalError("cannot execute UPDATE in a read-only transaction")

        retry.retry_on_outage(action, using="default")
        assert len(calls) == 2

    def test_the_loop_ends_meanwhile(self) -> None:
        """It cancels all tasks: also the one that was to write how the run ended."""
        run = make_run()
        busy, go_on = threading.Event(), threading.Event()

        def occupy() -> None:
            busy.set()
            go_on.wait(PATIENCE)

        async def work() -> None:
            async with execution(run.run_id):
                entered.set()
                await leave.wait()
                # The thread of the ORM is busy: the end has to wait.
                asyncio.get_running_loop().call_soon(ended.set)

        async def main() -> None:
            nonlocal task
            task = asyncio.create_task(work())
            await entered.wait()
            occupied = asyncio.ensure_future(sync_to_async(occupy)())
            await asyncio.to_thread(busy.wait)
            leave.set()
            await ended.wait()
            await asyncio.sleep(0.05)
            threading.Timer(0.3, go_on.set).start()
            assert not occupied.done()
            # and here asyncio.run() cancels whatever is left

        entered, leave, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        task: Any = None
        run_on_a_loop(main)
        assert statuses(run) == [RunStatus.COMPLETED]

    def test_seen_by_a_poll_that_began_before(self, settings: Any) -> None:
        """It stops nobody any more, and calls nothing back."""
        settings.RUN_CANCEL_POLL_SECONDS = 60
        run, called = make_run(), []
        with execution(run.run_id, requeue_on=OSError) as executed:
            executed.on_cancel(lambda: called.append(1))
        run_rows(pk=run.pk).update(status=RunStatus.CANCELLED)
        watcher.poll_runs([executed._watch])
        assert not executed.cancel_requested
        assert called == []

    def test_the_loop_ends_while_it_is_called_back(self) -> None:
        """Nothing is acknowledged before the callback has ended."""
        run, states = make_run(), []
        begun = threading.Event()

        def callback() -> None:
            begun.set()
            time.sleep(0.3)
            states.append(fresh(run).stop_state)

        async def work() -> None:
            async with execution(run.run_id) as executed:
                executed.on_cancel(callback)
                await sync_to_async(cancel)(run)

        async def main() -> None:
            nonlocal task
            task = asyncio.create_task(work())
            await asyncio.to_thread(begun.wait, PATIENCE)
            await asyncio.sleep(0.05)

        task: Any = None
        run_on_a_loop(main)
        assert states == [StopState.STOPPING]
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_needs_no_thread_of_others(self) -> None:
        """The pool of the loop may be full of work that never ends."""
        run = make_run()
        go_on = threading.Event()

        async def main() -> float:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(ThreadPoolExecutor(1))
            loop.run_in_executor(None, go_on.wait, PATIENCE)
            began = time.monotonic()
            async with execution(run.run_id) as executed:
                executed.on_cancel(lambda: None)
                await sync_to_async(cancel)(run)
            took = time.monotonic() - began
            go_on.set()
            return took

        assert run_on_a_loop(main) < PATIENCE / 2
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
