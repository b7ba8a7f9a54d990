"""Whose run it is: what moves it from outside, takes it over, or comes in the middle of a step."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from django.db import (
    Error,
    InternalError,
    OperationalError,
    connection,
    connections,
    models,
    transaction,
)
from django.utils import timezone

from django_run_cancel import attempts, holding, watcher
from django_run_cancel.backends import get_backend
from django_run_cancel.backends.base import StopOutcome
from django_run_cancel.backends.dummy import DummyBackend
from django_run_cancel.delivery import deliver_due
from django_run_cancel.dispatch import dispatch
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.models import AbstractRun, run_rows
from django_run_cancel.states import HANDED_BACK, RunStatus, StopState
from django_run_cancel.worker import execution
from tests.helpers import IS_POSTGRESQL, make_run, statuses
from tests.test_worker import PATIENCE, cancel, elsewhere, fresh, work_on

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


def dispatch_again(run: Any) -> None:
    dispatch(run, "dummy")


class TimeLimit(Exception):
    """As executors raise it from the handler of a signal, wherever the code is."""


class TestMovedFromOutside:
    """While the code is at work, somebody queues, pauses or dispatches its run."""

    MOVES: ClassVar[list[Callable[[Any], None]]] = [
        AbstractRun.mark_queued,
        AbstractRun.mark_paused,
        dispatch_again,
    ]

    @pytest.mark.parametrize("move", MOVES)
    def test_started_again__the_first_one_loses_it(self, move: Callable[[Any], None]) -> None:
        run = make_run()
        with pytest.raises(RunInProgress), execution(run.run_id) as first:
            move(fresh(run))
            with execution(run.run_id) as second:
                with pytest.raises(RunInProgress):
                    work_on(first)
                first._finish(None)
                assert fresh(run).status == RunStatus.RUNNING
                assert not second.cancel_requested
            assert fresh(run).status == RunStatus.COMPLETED
            first.checkpoint()
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.parametrize("move", MOVES)
    def test_cancelled__only_the_code_at_work_acknowledges(
        self, move: Callable[[Any], None]
    ) -> None:
        """Not the job that is refused meanwhile."""
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            move(fresh(run))
            cancel(run)
            with pytest.raises(RunCancelled), execution(run.run_id):
                pytest.fail("It came back.")
            assert fresh(run).stop_state == StopState.STOPPING
            work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.parametrize("move", MOVES)
    def test_cancelled_after_the_code_has_left(self, move: Callable[[Any], None]) -> None:
        run = make_run()
        with execution(run.run_id):
            move(fresh(run))
        assert fresh(run).execution_id == HANDED_BACK
        cancel(run)
        with pytest.raises(RunCancelled), execution(run.run_id):
            pytest.fail("It came back.")
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.parametrize("handed_back", [True, False])
    def test_cancelled__what_no_execution_has_held_is_not_acknowledged(
        self, handed_back: bool
    ) -> None:
        """By a job that is refused: code that marks its run itself may still be at work."""
        run = make_run()
        if handed_back:
            with execution(run.run_id):
                fresh(run).mark_paused()
        fresh(run).mark_running()
        assert fresh(run).execution_id is None
        fresh(run).mark_queued()
        cancel(run)
        with pytest.raises(RunCancelled), execution(run.run_id):
            pytest.fail("It came back.")
        assert fresh(run).stop_state == StopState.STOPPING

    def test_who_has_lost_it_cannot_move_it(self) -> None:
        """Not even with the instance that it was given."""
        run = make_run()
        with execution(run.run_id) as first, execution(run.run_id, take_over=True) as second:
            for mark in (first.run.mark_completed, first.run.mark_failed, first.run.mark_paused):
                with pytest.raises(TransitionNotAllowed, match="Another execution holds it"):
                    mark()
            assert fresh(run).status == RunStatus.RUNNING
            second.run.mark_paused()
            second.run.mark_running()
        assert fresh(run).status == RunStatus.COMPLETED

    def test_who_has_handed_it_back_can_move_it(self) -> None:
        """As when its tries are used up."""
        for requeue_on in ((OSError,), ()):
            run = make_run()
            with suppress(OSError), execution(run.run_id, requeue_on=requeue_on) as executed:
                if not requeue_on:
                    executed.run.mark_queued()
                raise OSError
            executed.run.mark_failed("no try left")
            assert fresh(run).failure_reason == "no try left"

    @pytest.mark.parametrize("outcome", [StopOutcome.STOPPED, StopOutcome.TOLD])
    def test_cancelled__that_its_new_job_will_not_run_is_no_evidence(
        self, outcome: StopOutcome
    ) -> None:
        backend = get_backend("dummy")
        assert isinstance(backend, DummyBackend)
        backend.clear()
        backend.outcome = outcome
        run = make_run()
        with execution(run.run_id):
            dispatch(fresh(run), "dummy")
            cancel(run)
            assert deliver_due().delivered == 1
            assert [request.running for request, _ in backend.stopped] == [True]
            assert fresh(run).stop_state == StopState.STOPPING
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
        backend.clear()

    def test_resumed_from_outside__the_code_still_has_it(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            fresh(run).mark_paused()
            fresh(run).mark_running()
            work_on(executed, 0.1)
        assert fresh(run).status == RunStatus.COMPLETED


def run_on_a_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine as a program does. The thread that asgiref has for the ORM then stays."""
    try:
        return elsewhere(lambda: asyncio.run(main()))
    finally:
        elsewhere(lambda: asyncio.run(sync_to_async(connections.close_all)()))


class TestTakenOver:
    def test_keeps_no_run_alive_that_is_another_s(self, settings: Any) -> None:
        """It may tidy up for long, while the one that has the run has died."""
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.05
        run = make_run()
        with execution(run.run_id) as first:
            work_on(first, 0.2)
            run_rows(pk=run.pk).update(execution_id=uuid4(), heartbeat_at=timezone.now())
            before = fresh(run).heartbeat_at
            until = time.monotonic() + 0.4
            while time.monotonic() < until:
                with suppress(RunInProgress):
                    first.checkpoint()
                time.sleep(0.01)
            assert fresh(run).heartbeat_at == before

    def test_just_before_the_heartbeat(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        run = make_run()
        with execution(run.run_id) as first:
            settings.RUN_CANCEL_HEARTBEAT_SECONDS = 1e-6
            before = fresh(run).heartbeat_at
            run_rows(pk=run.pk).update(execution_id=uuid4())
            first.checkpoint()
            watcher._beat([first])
            assert fresh(run).heartbeat_at == before

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL has locks that weak")
    def test_not_because_a_row_that_refers_to_it_is_inserted(self, settings: Any) -> None:
        """Its key is locked for that, in the transaction of the code."""
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.05
        run = make_run()
        key = run._meta.pk.rel_db_type(connection)
        table = connection.ops.quote_name(run._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE page (run {key} REFERENCES {table} ON DELETE CASCADE)")
            try:
                with execution(run.run_id) as executed, transaction.atomic():
                    cursor.execute("INSERT INTO page VALUES (%s)", [run.pk])
                    work_on(executed, 0.5)
                    with pytest.raises(RunInProgress):
                        elsewhere(lambda: execution(run.run_id, take_over=0.4).__enter__())
            finally:
                cursor.execute("DROP TABLE page")


class TestStarting:
    def test_once(self) -> None:
        run = make_run()
        executed = execution(run.run_id, requeue_on=OSError)
        with suppress(OSError), executed:
            raise OSError
        with pytest.raises(RuntimeError, match="entered once"), executed:
            pytest.fail("It was entered again.")
        assert fresh(run).status == RunStatus.QUEUED
        with execution(run.run_id) as executed:
            with pytest.raises(RuntimeError, match="entered once"):
                executed.__enter__()
            assert fresh(run).status == RunStatus.RUNNING
        assert fresh(run).status == RunStatus.COMPLETED

    def test_by_its_id(self) -> None:
        with pytest.raises(TypeError, match="public id"):
            execution(make_run())  # type: ignore[arg-type]

    def test_what_cannot_be_read_is_not_started(self, monkeypatch: Any) -> None:
        """As a column of the host that is not there yet: nobody would have the run."""
        run = make_run()

        def first(rows: Any) -> None:
            raise Error("no such column")

        with monkeypatch.context() as patch:
            patch.setattr(models.QuerySet, "first", first)
            with pytest.raises(Error, match="no such column"), execution(run.run_id):
                pytest.fail("It started.")
        assert fresh(run).status == RunStatus.QUEUED

    def test_interrupted_right_after_it(self, monkeypatch: Any) -> None:
        """By a signal: the database has done it, and nobody knows."""
        run = make_run()
        real = models.QuerySet.update

        def update(rows: Any, **values: Any) -> int:
            count = real(rows, **values)
            if values.get("status") == RunStatus.RUNNING:
                raise SystemExit(143)
            return count

        monkeypatch.setattr(models.QuerySet, "update", update)
        with pytest.raises(SystemExit), execution(run.run_id):
            pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.FAILED

    def test_answer_lost__and_cancelled_meanwhile(self) -> None:
        """No work has been done: that is said at once."""
        run = make_run()
        token = uuid4()
        held = holding.Holding(run.run_id, False, ())
        held.start(token)
        cancel(run)
        with pytest.raises(RunCancelled):
            held.start(token)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED


class TestEnding:
    def test_interrupted_while_it_is_written(self, monkeypatch: Any) -> None:
        """By a signal, for example because somebody holds a lock."""
        run = make_run()
        real, calls = holding.Holding.finish, []

        def finish(held: Any, error: Any) -> Any:
            calls.append(error)
            if len(calls) == 1:
                raise SystemExit(143)
            return real(held, error)

        monkeypatch.setattr(holding.Holding, "finish", finish)
        with pytest.raises(SystemExit), execution(run.run_id):
            pass
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.parametrize("kind", [TimeLimit, SystemExit])
    def test_a_signal_while_it_is_tried_again(self, monkeypatch: Any, kind: Any) -> None:
        """Such as that of a time limit of the executor, which is an exception as any other."""
        run, real, tries = make_run(), holding.Holding.finish, []

        def finish(held: Any, error: Any) -> Any:
            tries.append(error)
            if len(tries) == 1:
                raise OperationalError("away")
            return real(held, error)

        def sleep(seconds: float) -> None:
            raise kind

        monkeypatch.setattr(holding.Holding, "finish", finish)
        with pytest.raises(kind), execution(run.run_id):
            monkeypatch.setattr(attempts.time, "sleep", sleep)
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
            task = asyncio.ensure_future(attempts.to_the_end(away))
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
            attempts.steadily(action)
        assert calls == [1]

    def test_while_the_database_is_read_only(self, monkeypatch: Any) -> None:
        """As for a moment during a failover; psycopg calls that an internal error."""
        monkeypatch.setattr(attempts, "RETRY_DELAYS", [0.01])
        calls: list[int] = []

        def action() -> None:
            calls.append(1)
            if len(calls) == 1:
                raise InternalError("cannot execute UPDATE in a read-only transaction")

        attempts.steadily(action)
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
        watcher._look([executed])
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


class TestHandingBack:
    """Before the executor is told to try again, from within the block."""

    def test_the_next_try_may_come_at_once(self) -> None:
        run = make_run()
        with suppress(OSError), execution(run.run_id, requeue_on=OSError) as first:
            assert first.hand_back()
            with execution(run.run_id) as second:
                time.sleep(0.1)
                assert not first.cancel_requested
                assert not second.cancel_requested
            raise OSError
        assert fresh(run).status == RunStatus.COMPLETED

    def test_taken_back(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            executed.hand_back()
            assert fresh(run).status == RunStatus.QUEUED
            executed.take_back()
            assert fresh(run).status == executed.run.status == RunStatus.RUNNING
            elsewhere(cancel, run)
            with pytest.raises(RunCancelled):
                work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_cancelled_before_it_is_taken_back(self) -> None:
        """The code is still in its block: it tidies up, and only then that is recorded."""
        run, called = make_run(), []
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            executed.on_cancel(lambda: called.append(fresh(run).stop_state))
            executed.hand_back()
            cancel(run)
            try:
                executed.take_back()
            finally:
                assert fresh(run).stop_state == StopState.STOPPING
        assert called == [StopState.STOPPING]
        assert executed.cancelled
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_cancelled_before_it_is_handed_back(self) -> None:
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            cancel(run)
            executed.hand_back()
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_taken_by_another_meanwhile(self) -> None:
        run = make_run()
        with execution(run.run_id) as first:
            first.hand_back()
            with execution(run.run_id) as second:
                first.take_back()
                with pytest.raises(RunInProgress):
                    work_on(first)
                assert not second.cancel_requested
            assert fresh(run).status == RunStatus.COMPLETED

    def test_taken_over_before_it_is_handed_back(self) -> None:
        """Nobody is to try again what another is at."""
        run = make_run()
        with execution(run.run_id) as first, execution(run.run_id, take_over=True):
            with pytest.raises(RunInProgress):
                first.hand_back()
            assert fresh(run).status == RunStatus.RUNNING
        assert fresh(run).status == RunStatus.COMPLETED

    def test_ended_before_it_is_handed_back(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            executed.run.mark_terminated("No licence")
            with pytest.raises(TransitionNotAllowed):
                executed.hand_back()
        assert fresh(run).status == RunStatus.TERMINATED

    def test_in_a_transaction__left_to_the_end_of_the_block(self) -> None:
        run = make_run()
        with (
            suppress(OSError),
            execution(run.run_id, requeue_on=OSError) as executed,
            transaction.atomic(),
        ):
            assert not executed.hand_back()
            raise OSError
        assert fresh(run).status == RunStatus.QUEUED


class TestAbandoned:
    """A generator that nobody has any more ends where Python happens to collect it."""

    def pages(self, run: Any) -> Iterator[None]:
        with execution(run.run_id) as executed:
            while True:
                executed.checkpoint()
                yield

    def test_in_the_thread_that_asks_the_database(self, monkeypatch: Any) -> None:
        run, other = make_run(), make_run()
        with execution(other.run_id):
            pages = self.pages(run)
            next(pages)
            real, waiting = watcher._look, [pages]
            del pages

            def look(executions: Any) -> Any:
                if waiting:
                    assert watcher.amid_a_statement()
                    with watcher._watcher._lock:
                        waiting.clear()
                        gc.collect()
                return real(executions)

            finish = holding.Holding.finish
            threads: list[bool] = []

            def note(held: Any, error: Any) -> Any:
                threads.append(watcher.amid_a_statement())
                return finish(held, error)

            monkeypatch.setattr(holding.Holding, "finish", note)
            monkeypatch.setattr(watcher, "_look", look)
            until = time.monotonic() + PATIENCE
            while fresh(run).status == RunStatus.RUNNING:
                assert time.monotonic() < until
                time.sleep(0.01)
            assert run.failure_reason == "GeneratorExit"
            assert threads == [False]  # not where another statement may be on its way
        assert fresh(other).status == RunStatus.COMPLETED

    def test_in_the_middle_of_a_transaction_that_is_undone(self) -> None:
        """The collector may come anywhere, also while a driver holds a lock of its own."""
        run = make_run()
        pages = self.pages(run)
        next(pages)
        cycle: list[Any] = [pages]
        cycle.append(cycle)
        gc.disable()
        try:
            del pages, cycle
            with transaction.atomic():
                make_run()
                gc.collect()
                transaction.set_rollback(True)
        finally:
            gc.enable()
        until = time.monotonic() + PATIENCE
        while fresh(run).status == RunStatus.RUNNING:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert run.failure_reason == "GeneratorExit"

    def test_while_another_is_entered(self, monkeypatch: Any) -> None:
        run, other = make_run(), make_run()
        pages = self.pages(run)
        next(pages)
        waiting = [pages]
        del pages
        real = time.monotonic

        def monotonic() -> float:
            if waiting:
                with watcher._watcher._lock:  # as where add() holds it
                    waiting.clear()
                    gc.collect()
            return real()

        monkeypatch.setattr(watcher.time, "monotonic", monotonic)
        with execution(other.run_id):
            pass
        assert statuses(run, other) == [RunStatus.FAILED, RunStatus.COMPLETED]
