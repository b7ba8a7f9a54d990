"""Entering: which runs start, which are refused, and what an interruption leaves behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, cast
from uuid import uuid4

import pytest
from django.db import (
    Error,
    connections,
)

from django_run_cancel.db import retry
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import block, execution, on_cancel, ownership
from django_run_cancel.execution.watcher import Watch, Watcher
from django_run_cancel.states import TERMINAL, WAITING, RunStatus, StopState
from tests.execution.helpers import PATIENCE, cancel, fresh, run_async
from tests.helpers import make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestGate:
    @pytest.mark.parametrize("status", [*sorted(WAITING), RunStatus.PAUSED])
    def test_starts(self, status: str) -> None:
        run = make_run(status)
        with execution(run.run_id) as executed:
            assert executed.run == run
            assert executed.run.status == fresh(run).status == RunStatus.RUNNING
            assert executed.run.started_at == run.started_at <= run.heartbeat_at
        assert not executed.cancelled

    def test_cancelled_before_a_line_of_work_is_done(self) -> None:
        run = make_run()
        cancel(run)
        with pytest.raises(RunCancelled), execution(run.run_id):
            pytest.fail("It started.")
        assert fresh(run).stop_state == StopState.NEVER_STARTED
        assert run.started_at is None

    def test_redelivered(self) -> None:
        run = make_run()
        with execution(run.run_id):
            with pytest.raises(RunInProgress), execution(run.run_id):
                pytest.fail("It started twice.")
            assert fresh(run).status == RunStatus.RUNNING
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.parametrize("status", sorted(TERMINAL - {RunStatus.CANCELLED}))
    def test_ended(self, status: str) -> None:
        run = make_run(status)
        with pytest.raises(TransitionNotAllowed) as caught, execution(run.run_id):
            pytest.fail("It started.")
        assert caught.value.current == status

    def test_unknown(self) -> None:
        with pytest.raises(TransitionNotAllowed) as caught, execution("tsk_unknown"):
            pytest.fail("It started.")
        assert caught.value.current is None

    def test_only_one_of_many_starts(self) -> None:
        run = make_run()
        ready, won = threading.Barrier(8), []

        def start() -> None:
            ready.wait(PATIENCE)
            try:
                with execution(run.run_id) as executed:
                    won.append(executed)
                    done.wait(PATIENCE)
            except RunInProgress:
                lost.release()
            finally:
                connections.close_all()

        done, lost = threading.Event(), threading.Semaphore(0)
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(start) for _ in range(8)]
            for _ in range(7):
                assert lost.acquire(timeout=PATIENCE)
            done.set()
        for future in futures:
            future.result()
        assert len(won) == 1
        assert statuses(run) == [RunStatus.COMPLETED]

    def test_an_answer_that_was_lost_is_no_other_execution(self) -> None:
        """The first attempt had been committed when the connection died."""
        token = uuid4()
        run = make_run(RunStatus.RUNNING, execution_id=token)
        executed = execution(run.run_id)
        executed._ownership.start(token, False)
        assert executed.run == run
        with pytest.raises(RunInProgress):
            execution(run.run_id)._ownership.start(uuid4(), False)

    @pytest.mark.parametrize("error", [SystemExit(), OSError("no descriptors left")])
    def test_what_comes_before_the_work_ends_the_run(
        self, error: BaseException, monkeypatch: Any
    ) -> None:
        """Such as a signal, between the start and the first line of work."""

        def add(watcher: Watcher, watch: Watch) -> None:
            raise error

        monkeypatch.setattr(Watcher, "add", add)
        run = make_run()
        with pytest.raises(type(error)), execution(run.run_id):
            pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.FAILED
        assert run.failure_reason.startswith(type(error).__name__)

    def test_what_comes_before_the_start_leaves_the_run_alone(self, monkeypatch: Any) -> None:
        def capture_thread_context() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(block, "capture_thread_context", capture_thread_context)
        run = make_run()
        with pytest.raises(KeyboardInterrupt), execution(run.run_id):
            pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.QUEUED


class TestNotEntered:
    """What was not started has no end that could be recorded."""

    @pytest.mark.parametrize("error", [RunInProgress("tsk_1"), Error("no such column")])
    @pytest.mark.parametrize("is_async", [False, True])
    def test_nothing_is_written(
        self, error: Exception, monkeypatch: Any, *, is_async: bool
    ) -> None:
        ends: list[Any] = []

        def start(held: Any, execution_id: Any, take_over: Any) -> None:
            raise error

        def finish(held: Any, error: Any) -> None:
            ends.append(error)

        async def main() -> None:
            async with execution("tsk_1"):
                pytest.fail("It was entered.")

        monkeypatch.setattr(ownership.Ownership, "start", start)
        monkeypatch.setattr(ownership.Ownership, "finish", finish)
        with pytest.raises(type(error)):  # noqa: PT012
            if is_async:
                run_async(main)
            with execution("tsk_1"):
                pytest.fail("It was entered.")
        assert ends == []


class TestStarting:
    def test_once(self) -> None:
        run = make_run()
        executed = execution(run.run_id, requeue_on=OSError)
        with suppress(OSError), executed:
            raise OSError
        with pytest.raises(RuntimeError, match="entered only once"), executed:
            pytest.fail("It was entered again.")
        assert fresh(run).status == RunStatus.QUEUED
        with execution(run.run_id) as executed:
            with pytest.raises(RuntimeError, match="entered only once"):
                executed.__enter__()
            assert fresh(run).status == RunStatus.RUNNING
        assert fresh(run).status == RunStatus.COMPLETED

    def test_has_no_run_before(self) -> None:
        with pytest.raises(RuntimeError, match="enter the block first"):
            _ = execution(make_run().run_id).run

    def test_names_of_arguments(self) -> None:
        """The first one has a name, and the others cannot do without theirs."""
        executed, anything = execution(run_id="tsk_1"), cast(Any, True)
        executed.on_cancel(callback=print, deadline=1)
        on_cancel(callback=print, deadline=1)
        for call in (partial(execution, "tsk_1"), partial(on_cancel, print)):
            with pytest.raises(TypeError, match="positional"):
                call(anything)
        with pytest.raises(TypeError, match="positional"):
            executed.on_cancel(print, anything)  # type: ignore[misc]

    def test_by_its_id(self) -> None:
        with pytest.raises(TypeError, match="public id"):
            execution(make_run())  # type: ignore[arg-type]

    def test_what_cannot_be_read_is_not_started(self, monkeypatch: Any) -> None:
        """As a column of the host that is not there yet: nobody would have the run."""
        run = make_run()

        field = type(run)._meta.get_field("title")
        with monkeypatch.context() as patch:
            patch.setattr(field, "column", "not_there_yet")
            patch.setattr(retry, "RETRY_DELAYS", [])
            with pytest.raises(Error, match="not_there_yet"), execution(run.run_id):
                pytest.fail("It started.")
        assert fresh(run).status == RunStatus.QUEUED

    def test_interrupted_right_after_it(self, monkeypatch: Any) -> None:
        """By a signal: the database has done it, and nobody knows."""
        run = make_run()
        real = ownership.update_and_read

        def update_and_read(*args: Any, **values: Any) -> Any:
            real(*args, **values)
            raise SystemExit(143)

        monkeypatch.setattr(ownership, "update_and_read", update_and_read)
        with pytest.raises(SystemExit), execution(run.run_id):
            pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.FAILED

    def test_answer_lost__and_cancelled_meanwhile(self) -> None:
        """No work has been done: that is said at once."""
        run = make_run()
        token = uuid4()
        held = ownership.Ownership(run.run_id, ())
        held.start(token, False)
        cancel(run)
        with pytest.raises(RunCancelled):
            held.start(token, False)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
