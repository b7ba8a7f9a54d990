"""Checkpoints: where code stops once its run has been cancelled or ended from outside."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from timeit import repeat
from typing import Any

import pytest
from django.db import connection, connections, transaction

from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.execution import execution, watcher
from django_run_cancel.states import TERMINAL, RunStatus, StopState
from tests.execution.helpers import (
    PATIENCE,
    cancel,
    elsewhere,
    fresh,
    work_on,
)
from tests.helpers import IS_MYSQL, IS_SQLITE, make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestStopping:
    def test_at_a_checkpoint(self) -> None:
        run = make_run()
        with pytest.raises(RunCancelled) as caught, execution(run.run_id) as executed:
            work_on(executed, 0.1)
            assert not executed.cancel_requested
            elsewhere(cancel, run)
            work_on(executed)
        assert caught.value.run_id == run.run_id
        assert executed.cancel_requested
        assert executed.cancelled
        assert executed.cancellation is not None
        assert executed.cancellation.reason == "enough"
        assert executed.cancellation.requested_by == "tests"
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
        assert run.stopped_at is not None

    @pytest.mark.parametrize("status", sorted(TERMINAL - {RunStatus.CANCELLED}))
    def test_ended_from_outside(self, status: str) -> None:
        run = make_run()
        with pytest.raises(TransitionNotAllowed) as caught, execution(run.run_id) as executed:
            fresh(run).transition_to(status)
            work_on(executed)
        assert caught.value.current == fresh(run).status == status
        assert not executed.cancelled

    def test_ended_from_outside__only_when_read_twice(self, settings: Any) -> None:
        """The code may have written the status itself, and not set it on its instance yet."""
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = PATIENCE
        run = make_run()
        with execution(run.run_id) as executed:
            fresh(run).mark_terminated()
            watcher.poll_now()
            assert not executed.cancel_requested
            watcher.poll_now()
            with pytest.raises(TransitionNotAllowed):
                executed.checkpoint()

    def test_code_that_swallows_exceptions(self) -> None:
        run, swallowed = make_run(), 0
        with execution(run.run_id) as executed:
            cancel(run)
            while swallowed < 3:
                try:
                    work_on(executed)
                except Exception:  # noqa: BLE001 - as bad code does
                    swallowed += 1
        assert executed.cancelled
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_another_exception_of_code_that_is_stopping(self) -> None:
        """As when the executor has raised one of its own to stop it."""
        run = make_run()
        with pytest.raises(SystemExit), execution(run.run_id):
            cancel(run)
            raise SystemExit
        assert fresh(run).status == RunStatus.CANCELLED
        assert run.failure_reason == ""
        assert run.stop_state == StopState.ACKNOWLEDGED

    def test_generator(self) -> None:
        def pages(run: Any) -> Iterator[int]:
            with execution(run.run_id) as executed:
                for number in count():
                    executed.checkpoint()
                    yield number

        cancelled, closed = make_run(), make_run()
        work = pages(cancelled)
        assert next(work) == 0
        cancel(cancelled)
        with pytest.raises(RunCancelled):
            for _ in work:
                time.sleep(0.002)
        assert fresh(cancelled).stop_state == StopState.ACKNOWLEDGED
        work = pages(closed)
        assert next(work) == 0
        work.close()
        assert fresh(closed).status == RunStatus.FAILED
        assert closed.failure_reason == "GeneratorExit"

    def test_threads(self) -> None:
        runs = [make_run() for _ in range(12)]
        started = threading.Barrier(13)

        told = threading.Event()

        def work(run: Any, is_cancelled: bool) -> bool:
            try:
                with execution(run.run_id) as executed:
                    started.wait(PATIENCE)
                    if is_cancelled:
                        work_on(executed)
                    told.wait(PATIENCE)
                    executed.checkpoint()
            except RunCancelled:
                return False
            finally:
                connections.close_all()
            return True

        with ThreadPoolExecutor(12) as pool:
            futures = [pool.submit(work, run, run in runs[::2]) for run in runs]
            started.wait(PATIENCE)
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("run_cancel") == 1
            cancel(*runs[::2])
            assert [future.result() for future in futures[::2]] == [False] * 6
            told.set()
        assert [future.result() for future in futures] == [False, True] * 6
        assert statuses(*runs) == [RunStatus.CANCELLED, RunStatus.COMPLETED] * 6

    def test_one_query_for_all(self, django_assert_num_queries: Any, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        runs = [make_run() for _ in range(5)]
        executions = [execution(run.run_id).__enter__() for run in runs]
        with django_assert_num_queries(1):
            watcher.poll_now()
        for executed in executions:
            executed.__exit__(None, None, None)

    @pytest.mark.parametrize("level", ["", "REPEATABLE READ"])
    def test_inside_a_transaction_of_the_code(self, level: str) -> None:
        """Where the code's own connection goes on seeing the run as it was."""
        if level and IS_SQLITE:
            pytest.skip("SQLite has one level only.")
        run = make_run()
        with connection.cursor() as cursor:
            if IS_SQLITE:
                # Django's BEGIN IMMEDIATE would keep everybody from cancelling.
                connection.transaction_mode = "DEFERRED"
            elif level and IS_MYSQL:
                cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")
            elif level:
                cursor.execute(
                    f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}"
                )
        try:
            with pytest.raises(RunCancelled), execution(run.run_id) as executed:  # noqa: SIM117
                with transaction.atomic():
                    assert statuses(run) == [RunStatus.RUNNING]
                    elsewhere(cancel, run)
                    if level or IS_SQLITE:
                        assert statuses(run) == [RunStatus.RUNNING]
                    work_on(executed)
        finally:
            connection.close()
            if IS_SQLITE:
                connection.transaction_mode = "IMMEDIATE"
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED


def test_a_checkpoint_costs_as_much_as_a_few_calls(settings: Any) -> None:
    """However slow the machine; ``make bench`` measures how long that is."""
    settings.RUN_CANCEL_POLL_SECONDS = PATIENCE  # no poll is late
    if sys.gettrace():
        pytest.skip("Measured without coverage.")

    def seconds(call: Callable[[], None]) -> float:
        return min(repeat(call, timer=time.thread_time, number=100_000, repeat=5))

    with execution(make_run().run_id) as executed:
        assert seconds(executed.checkpoint) < 30 * seconds(lambda: None)


def test_many_executions_are_told_with_two_queries(
    django_assert_num_queries: Any, settings: Any
) -> None:
    """One for the runs and one for the records of their cancellations."""
    settings.RUN_CANCEL_POLL_SECONDS = PATIENCE
    runs = [make_run() for _ in range(20)]
    executions = [execution(run.run_id).__enter__() for run in runs]
    cancel(*runs[:10])
    for run in runs[10:]:
        cancel(run)
    with django_assert_num_queries(2):
        watcher.poll_now()
    for run, executed in zip(runs, executions, strict=True):
        assert executed.cancellation is not None
        assert executed.cancellation.pk == fresh(run).cancellation_id
        with pytest.raises(RunCancelled) as caught:
            executed.checkpoint()
        executed.__exit__(RunCancelled, caught.value, None)
    assert {fresh(run).stop_state for run in runs} == {StopState.ACKNOWLEDGED}
