"""Code that is executing a run: where it starts, where it stops, and what is then on record."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import errno
import os
import resource
import selectors
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from django.db import Error, connection, connections, transaction
from django.utils import timezone

from django_run_cancel import attempts, sql, watcher, worker
from django_run_cancel.callbacks import Callbacks
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.models import get_run_model
from django_run_cancel.services import cancel_runs
from django_run_cancel.states import TERMINAL, WAITING, RunStatus, StopState
from django_run_cancel.worker import Execution, execution
from tests.bench_checkpoint import LIMIT, measure
from tests.helpers import IS_MYSQL, IS_POSTGRESQL, IS_SQLITE, make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]

PATIENCE = 10


def cancel(*runs: Any) -> None:
    cancel_runs([run.run_id for run in runs], requested_by="tests", reason="enough")


def elsewhere(job: Callable[..., Any], *args: Any) -> Any:
    """Do something in another thread, with a connection of its own."""

    def work() -> Any:
        try:
            return job(*args)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(PATIENCE)


def work_on(run: Execution, seconds: float = PATIENCE) -> None:
    """Ask at checkpoints until one of them raises."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        run.checkpoint()
        time.sleep(0.002)


def fresh(run: Any) -> Any:
    run.refresh_from_db()
    return run


def kill_other_sessions() -> None:
    """End the connections of all other threads, as a restart of the database does."""
    with connection.cursor() as cursor:
        if IS_POSTGRESQL:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        else:
            cursor.execute(
                "SELECT id FROM information_schema.processlist"
                " WHERE db = database() AND id <> connection_id()"
            )
            for (session,) in cursor.fetchall():
                cursor.execute(f"KILL {session}")


def rename_table(old: str, new: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")


class TestGate:
    @pytest.mark.parametrize("status", [*sorted(WAITING), RunStatus.PAUSED])
    def test_starts(self, status: str) -> None:
        run = make_run(status)
        with execution(run.run_id) as executed:
            assert executed.run == run
            assert executed.run.status == fresh(run).status == RunStatus.RUNNING
            assert run.started_at == run.heartbeat_at
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
        executed._holding.start(token)
        assert executed.run == run
        with pytest.raises(RunInProgress):
            execution(run.run_id)._holding.start(uuid4())

    @pytest.mark.parametrize("error", [SystemExit(), OSError("no descriptors left")])
    def test_what_comes_before_the_work_ends_the_run(
        self, error: BaseException, monkeypatch: Any
    ) -> None:
        """Such as a signal, between the start and the first line of work."""

        def watch(executed: Execution) -> None:
            raise error

        monkeypatch.setattr(worker, "watch", watch)
        run = make_run()
        with pytest.raises(type(error)), execution(run.run_id):
            pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.FAILED
        assert run.failure_reason.startswith(type(error).__name__)

    def test_what_comes_before_the_start_leaves_the_run_alone(self, monkeypatch: Any) -> None:
        def steadily(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(worker, "steadily", steadily)
        run = make_run()
        with pytest.raises(KeyboardInterrupt), execution(run.run_id):
            pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.QUEUED


class TestTakingOver:
    def test_stops_the_other(self) -> None:
        run = make_run()
        with pytest.raises(RunInProgress), execution(run.run_id) as first:
            with execution(run.run_id, take_over=True) as second:
                with pytest.raises(RunInProgress):
                    work_on(first)
                assert not second.cancel_requested
                # The first one has lost it, and can no longer say how it ended.
                first._finish(ValueError("late"))
                assert fresh(run).status == RunStatus.RUNNING
            assert fresh(run).status == RunStatus.COMPLETED
            first.checkpoint()
        assert fresh(run).status == RunStatus.COMPLETED

    def test_does_not_speak_for_the_other(self) -> None:
        run = make_run()
        with execution(run.run_id) as first:
            with pytest.raises(RunCancelled), execution(run.run_id, take_over=True) as second:
                cancel(run)
                first._finish(None)
                first._acknowledge()
                assert fresh(run).stop_state == StopState.STOPPING
                work_on(second)
            assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_only_what_has_been_silent_for_so_long(self) -> None:
        run = make_run()
        with execution(run.run_id):
            with pytest.raises(RunInProgress), execution(run.run_id, take_over=60):
                pytest.fail("It started twice.")
            type(run)._base_manager.update(heartbeat_at=timezone.now() - timedelta(seconds=61))
            with execution(run.run_id, take_over=60):
                pass
        assert fresh(run).status == RunStatus.COMPLETED

    def test_what_is_not_running_just_starts(self) -> None:
        earlier = timezone.now() - timedelta(hours=1)
        run = make_run(started_at=earlier)
        with execution(run.run_id, take_over=True):
            assert fresh(run).started_at == earlier

    def test_not_a_cancelled_one(self) -> None:
        run = make_run(RunStatus.RUNNING)
        cancel(run)
        with pytest.raises(RunCancelled), execution(run.run_id, take_over=True):
            pytest.fail("It came back.")


class TestLeaving:
    def test_completed(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            executed.checkpoint()
        assert fresh(run).status == executed.run.status == RunStatus.COMPLETED
        assert run.finished_at == executed.run.finished_at

    @pytest.mark.parametrize(
        "error", [ValueError("no such page"), KeyboardInterrupt("no such page")]
    )
    def test_failed(self, error: BaseException) -> None:
        run = make_run()
        with pytest.raises(type(error)), execution(run.run_id):
            raise error
        assert fresh(run).status == RunStatus.FAILED
        assert run.failure_reason == f"{type(error).__name__}: no such page"

    def test_failed_with_what_databases_cannot_store(self) -> None:
        run = make_run()
        with pytest.raises(ValueError, match="bad"), execution(run.run_id):
            raise ValueError("bad \0 \ud800" + "x" * 20_000)
        assert fresh(run).failure_reason.startswith("ValueError: bad  \\ud800xxx")

    def test_tried_again(self) -> None:
        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=(OSError,)):
            raise OSError("again")
        assert fresh(run).status == RunStatus.QUEUED
        assert run.finished_at is None
        with execution(run.run_id, requeue_on=(OSError,)):
            pass
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.parametrize("left", [1, 0])
    def test_tried_again_if_somebody_says_so(self, left: int) -> None:
        """Only the executor knows whether there is a try left."""
        run, asked = make_run(), []

        def tried_again(error: BaseException) -> bool:
            asked.append(error)
            return bool(left)

        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=tried_again):
            raise OSError("again")
        assert fresh(run).status == (RunStatus.QUEUED if left else RunStatus.FAILED)
        assert [str(error) for error in asked] == ["again"]
        other = make_run()
        with execution(other.run_id, requeue_on=tried_again):
            pass
        assert fresh(other).status == RunStatus.COMPLETED

    def test_tried_again_if_somebody_could_say_so(self, caplog: Any) -> None:
        def broken(error: BaseException) -> bool:
            raise LookupError("no current job")

        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=broken):
            raise OSError("again")
        assert fresh(run).failure_reason == "OSError: again"
        assert "no current job" in caplog.text

    def test_tried_again_after_one_exception(self) -> None:
        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=OSError):
            raise OSError("again")
        assert fresh(run).status == RunStatus.QUEUED

    def test_tried_again_but_cancelled_meanwhile(self) -> None:
        """The retry is refused, and that says that the code has ended."""
        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=(OSError,)):
            raise OSError("again")
        cancel(run)
        assert fresh(run).stop_state == StopState.STOPPING
        for _ in range(2):
            with pytest.raises(RunCancelled), execution(run.run_id):
                pytest.fail("It came back.")
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_a_redelivery_does_not_say_that_the_code_has_ended(self) -> None:
        run = make_run()
        with execution(run.run_id):
            cancel(run)
            with pytest.raises(RunCancelled), execution(run.run_id):
                pytest.fail("It started twice.")
            assert fresh(run).stop_state == StopState.STOPPING
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_cancelled_just_before_an_exception_that_means_again(self) -> None:
        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=(OSError,)):
            cancel(run)
            raise OSError("again")
        assert fresh(run).status == RunStatus.CANCELLED
        assert run.stop_state == StopState.ACKNOWLEDGED

    def test_cancelled_but_the_work_was_done(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        run = make_run()
        with execution(run.run_id) as executed:
            cancel(run)
        assert executed.cancelled
        assert executed.cancellation is not None
        assert fresh(run).status == RunStatus.CANCELLED
        assert run.stop_state == StopState.ACKNOWLEDGED

    def test_the_code_has_said_itself_how_it_ended(self) -> None:
        for mark in ("mark_failed", "mark_completed", "mark_paused", "mark_queued"):
            run = make_run()
            with execution(run.run_id) as executed:
                getattr(executed.run, mark)()
                time.sleep(0.05)
                executed.checkpoint()
            assert f"mark_{fresh(run).status}" == mark

    def test_deleted(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            type(run)._base_manager.all().delete()
            time.sleep(0.05)
            executed.checkpoint()
        assert not executed.cancelled


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

        def work(run: Any) -> bool:
            try:
                with execution(run.run_id) as executed:
                    started.wait(PATIENCE)
                    work_on(executed, 1)
            except RunCancelled:
                return False
            finally:
                connections.close_all()
            return True

        with ThreadPoolExecutor(12) as pool:
            futures = [pool.submit(work, run) for run in runs]
            started.wait(PATIENCE)
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("run_cancel") == 1
            cancel(*runs[::2])
        assert [future.result() for future in futures] == [False, True] * 6
        assert statuses(*runs) == [RunStatus.CANCELLED, RunStatus.COMPLETED] * 6

    def test_one_query_for_all(self, django_assert_num_queries: Any, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        runs = [make_run() for _ in range(5)]
        executions = [execution(run.run_id).__enter__() for run in runs]
        with django_assert_num_queries(1):
            watcher._look(list(watcher._watcher.watched.values()))
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


def test_a_checkpoint_costs_less_than_a_microsecond() -> None:
    if sys.gettrace():
        pytest.skip("Measured without coverage, and by make bench.")
    with execution(make_run().run_id) as executed:
        assert min(measure(executed, rounds=5)) < LIMIT


class TestForks:
    """What a pre-forking worker does, and code that forks while it works."""

    def fork(self, child: Callable[[], None]) -> int:
        connections.close_all()  # as they all do: a connection cannot be shared
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)

    def succeeded(self, pid: int) -> bool:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_executes_in_the_child(self) -> None:
        run, other = make_run(), make_run()

        def child() -> None:
            with pytest.raises(RunCancelled), execution(run.run_id) as executed:
                work_on(executed)

        with execution(other.run_id):  # the parent's thread does not exist in the child
            time.sleep(0.05)
            pid = self.fork(child)
            while fresh(run).status == RunStatus.QUEUED:
                time.sleep(0.01)
            cancel(run)
            assert self.succeeded(pid)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
        assert statuses(other) == [RunStatus.COMPLETED]

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_forks_while_it_executes(self) -> None:
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:

            def child() -> None:
                assert not executed.cancel_requested
                with pytest.raises(RunCancelled):
                    work_on(executed)

            pid = self.fork(child)
            cancel(run)
            assert self.succeeded(pid)
            work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_the_child_leaves_the_block(self) -> None:
        """It is the parent who says how the run ends."""
        run = make_run()
        with execution(run.run_id) as executed:

            def child() -> None:
                with suppress(SystemExit):
                    try:
                        sys.exit()
                    except SystemExit as error:
                        executed.__exit__(None, error, None)
                        raise

            assert self.succeeded(self.fork(child))
            assert fresh(run).status == RunStatus.RUNNING
            executed._pid += 1  # the same in this process
            executed.__exit__(None, ValueError(), None)
            executed._pid -= 1
            assert fresh(run).status == RunStatus.RUNNING
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_forks_when_it_is_to_stop(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            cancel(run)
            with pytest.raises(RunCancelled):
                work_on(executed)

            def child() -> None:
                with pytest.raises(RunCancelled):
                    executed.checkpoint()

            assert self.succeeded(self.fork(child))
            executed.forked()  # the same in this process
            assert executed.cancel_requested

    def test_what_the_child_is_left_with(self) -> None:
        """The same in this process, where coverage is measured."""
        run, parents = make_run(), watcher._watcher
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            watcher._after_fork()
            parents.remove(executed)
            assert not watcher._watcher.watched
            cancel(run)
            work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED


class TestWithoutADatabase:
    @pytest.mark.skipif(IS_SQLITE, reason="SQLite has no connection that could die")
    def test_connections_died(self) -> None:
        run = make_run()

        def work() -> None:
            with execution(run.run_id) as executed:
                started.set()
                assert killed.wait(PATIENCE)
                work_on(executed, 0.3)
                elsewhere(cancel, run)
                work_on(executed)

        started, killed = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            assert started.wait(PATIENCE)
            time.sleep(0.1)  # for the watcher to have connected
            kill_other_sessions()
            killed.set()
            with pytest.raises(RunCancelled):
                future.result(PATIENCE)
            pool.submit(connections.close_all)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_away_for_a_moment(self, caplog: Any) -> None:
        """A healthy run goes on, and a cancellation is seen afterwards."""
        run = make_run()
        table = run._meta.db_table
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            rename_table(table, "away")
            try:
                until = time.monotonic() + PATIENCE
                while not caplog.records and time.monotonic() < until:
                    work_on(executed, 0.02)
                work_on(executed, 0.2)
            finally:
                rename_table("away", table)
            cancel(run)
            work_on(executed)
        # Once, however often it was asked meanwhile.
        (message,) = caplog.messages
        assert message.startswith("Cannot ask")
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.skipif(not IS_SQLITE, reason="Elsewhere a table that is missing is no outage.")
    def test_away_when_it_ends(self) -> None:
        run = make_run()
        table = run._meta.db_table
        back = threading.Timer(0.2, elsewhere, [rename_table, "away", table])
        with execution(run.run_id):
            rename_table(table, "away")
            back.start()
        back.join()
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.parametrize("error", [None, ValueError("the first")])
    def test_away_for_good(self, error: Exception | None, caplog: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(attempts, "RETRY_DELAYS", [0.01])
        run = make_run()
        table = run._meta.db_table
        try:
            with pytest.raises(type(error) if error else Error):  # noqa: SIM117
                with execution(run.run_id):
                    rename_table(table, "away")
                    if error:
                        raise error
        finally:
            rename_table("away", table)
        assert any("could not be recorded" in text for text in caplog.messages) is bool(error)

    def test_inside_a_transaction_of_the_caller(self, monkeypatch: Any) -> None:
        """Nothing can be repeated there, and waiting would keep its locks."""
        monkeypatch.setattr(attempts, "RETRY_DELAYS", [PATIENCE])
        if not IS_SQLITE:
            pytest.skip("Elsewhere a table that is missing is no outage.")
        table = get_run_model()._meta.db_table
        rename_table(table, "away")
        began = time.monotonic()
        try:
            with pytest.raises(Error), transaction.atomic(), execution("tsk_1"):
                pytest.fail("It started.")
        finally:
            rename_table("away", table)
        assert time.monotonic() - began < PATIENCE


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process have no file descriptors left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    taken = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


class TestWithoutDescriptors:
    """A process that has none left must still see cancellations, and end its runs."""

    def test_while_it_polls(self, monkeypatch: Any) -> None:
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            work_on(executed, 0.1)
            monkeypatch.setattr(selectors, "DefaultSelector", self.none_left)
            work_on(executed, 0.1)
            elsewhere(cancel, run)
            work_on(executed)
        monkeypatch.undo()
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def none_left(self) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite needs descriptors to write")
    def test_for_real(self) -> None:
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            work_on(executed, 0.2)  # by now the thread has its connection
            with no_descriptors():
                cancel(run)
                work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite needs descriptors to write")
    def test_when_it_starts(self) -> None:
        run = make_run()
        assert fresh(run)  # connected
        with (
            no_descriptors(),
            pytest.raises(OSError, match="Too many open files"),
            execution(run.run_id),
        ):
            pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.FAILED
        other = make_run()
        with execution(other.run_id):
            pass
        assert fresh(other).status == RunStatus.COMPLETED

    def test_no_threads_left(self, monkeypatch: Any) -> None:
        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        run, other = make_run(), make_run()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="new thread"), execution(run.run_id):
                pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.FAILED
        with execution(other.run_id):
            pass
        assert fresh(other).status == RunStatus.COMPLETED


class TestHeartbeat:
    def test_while_the_code_asks(self, settings: Any) -> None:
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.1
        run = make_run()
        with execution(run.run_id) as executed:
            first = fresh(run).heartbeat_at
            work_on(executed, 0.5)
            second = fresh(run).heartbeat_at
            assert second > first
            time.sleep(0.3)  # at most one more, for what it did before
            third = fresh(run).heartbeat_at
            time.sleep(0.3)
            assert fresh(run).heartbeat_at == third

    def test_not_more_often(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            work_on(executed, 0.3)
            assert fresh(run).heartbeat_at == run.started_at

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
    def test_waits_for_no_lock(self, settings: Any) -> None:
        """Code that has locked its own run must not keep others from being stopped."""
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.01
        locked, run = make_run(), make_run()
        with (
            execution(locked.run_id) as first,
            pytest.raises(RunCancelled),
            execution(run.run_id) as second,
            transaction.atomic(),
        ):
            type(run)._base_manager.select_for_update().get(pk=locked.pk)
            first.checkpoint()
            time.sleep(0.1)
            elsewhere(cancel, run)
            work_on(second)

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
    def test_that_could_not_be_written_is_due_still(self, settings: Any) -> None:
        """The code has been alive; that somebody had locked the row must not hide it."""
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.1
        run = make_run()
        with execution(run.run_id) as executed:
            first = fresh(run).heartbeat_at
            with transaction.atomic():
                type(run)._base_manager.select_for_update().get(pk=run.pk)
                executed.checkpoint()
                time.sleep(0.3)
            time.sleep(0.2)  # without another checkpoint
            assert fresh(run).heartbeat_at > first

    def test_that_fails_is_due_still(self, settings: Any, monkeypatch: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 60
        run = make_run()
        with execution(run.run_id) as executed:
            settings.RUN_CANCEL_HEARTBEAT_SECONDS = 1e-6
            executed.checkpoint()

            def update(*args: Any, **values: Any) -> None:
                raise Error("away")

            with monkeypatch.context() as patch:
                patch.setattr(sql, "update_unlocked", update)
                with pytest.raises(Error, match="away"):
                    watcher._beat([executed])
            assert executed.alive
            watcher._beat([executed])
            assert not executed.alive
            assert fresh(run).heartbeat_at > run.started_at


class TestListening:
    @pytest.fixture(autouse=True)
    def _listening(self, watched: None, settings: Any) -> None:
        settings.RUN_CANCEL_LISTEN = True
        settings.RUN_CANCEL_POLL_SECONDS = 60

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_within_50_ms(self) -> None:
        took = []
        for _ in range(20):
            run = make_run()
            with execution(run.run_id) as executed:
                wait_until_listening()
                cancel(run)
                committed = time.monotonic()
                with pytest.raises(RunCancelled):
                    work_on(executed)
                took.append(time.monotonic() - committed)
        assert sorted(took)[10] < 0.05, took

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_not_when_it_is_rolled_back(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            wait_until_listening()
            with transaction.atomic():
                cancel(run)
                transaction.set_rollback(True)
            work_on(executed, 0.2)
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_polls_on_when_nobody_tells(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 0.05
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            wait_until_listening()
            kill_other_sessions()
            settings.RUN_CANCEL_LISTEN = False
            cancel(run)
            settings.RUN_CANCEL_LISTEN = True
            work_on(executed)

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_leaves_nothing_on_a_connection_that_goes_back_to_a_pool(self) -> None:
        with execution(make_run().run_id):
            wait_until_listening()
            listening = watcher._watcher._listening
            close, listening.close = listening.close, lambda: None  # as a pool would
        for thread in threading.enumerate():
            if thread.name == "run_cancel":
                thread.join(PATIENCE)
        try:
            assert listening.execute("SELECT pg_listening_channels()").fetchall() == []
            assert not listening._notify_handlers
        finally:
            close()

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_polls_when_it_cannot_listen(
        self, settings: Any, monkeypatch: Any, caplog: Any
    ) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 0.02
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            with monkeypatch.context() as patch:
                patch.setattr(sql, "CHANNEL", "no channel")
                work_on(executed, 0.2)
            elsewhere(cancel, run)
            work_on(executed)
        (message,) = caplog.messages  # once
        assert message.startswith("Cannot listen")

    @pytest.mark.skipif(IS_POSTGRESQL, reason="the others cannot tell")
    def test_polls_where_there_is_nothing_to_listen_to(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 0.05
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            cancel(run)
            work_on(executed)


def wait_until_listening() -> None:
    until = time.monotonic() + PATIENCE
    while watcher._watcher._listening is None:
        assert time.monotonic() < until
        time.sleep(0.001)


class TestCallbacks:
    def test_at_once(self) -> None:
        run, called = make_run(), threading.Event()
        with execution(run.run_id) as executed:
            executed.on_cancel(called.set)
            assert not called.wait(0.1)
            cancel(run)
            assert called.wait(PATIENCE)
            late: list[str] = []
            executed.on_cancel(lambda: late.append("now"))
        assert late == ["now"]

    def test_once(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        run, called = make_run(), []
        with execution(run.run_id) as executed:
            executed.on_cancel(lambda: called.append(1))
            cancel(run)  # seen when it leaves
        assert called == [1]

    def test_not_without_a_cancellation(self) -> None:
        run, called = make_run(), []
        with execution(run.run_id) as executed:
            executed.on_cancel(lambda: called.append(1))
        assert called == []

    def test_coroutine_functions(self) -> None:
        run, called = make_run(), threading.Event()

        async def callback() -> None:
            called.set()

        with execution(run.run_id) as executed:
            executed.on_cancel(callback)
            cancel(run)
            assert called.wait(PATIENCE)

    def test_functions_that_return_coroutines(self) -> None:
        run, called = make_run(), threading.Event()

        async def callback() -> None:
            called.set()

        with execution(run.run_id) as executed:
            executed.on_cancel(lambda: callback())
            cancel(run)
            assert called.wait(PATIENCE)

    @pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), 1e10])
    def test_deadlines_that_are_none(self, deadline: float) -> None:
        executed = execution("tsk_x")
        with pytest.raises(ValueError, match="seconds above 0"):
            executed.on_cancel(lambda: None, deadline=deadline)
        with pytest.raises(TypeError):
            executed.on_cancel(lambda: None, deadline=None)  # type: ignore[arg-type]

    def test_stopped_only_when_they_have_ended(self) -> None:
        run, states = make_run(), []

        def callback() -> None:
            time.sleep(0.2)
            states.append(fresh(run).stop_state)

        with execution(run.run_id) as executed:
            executed.on_cancel(callback)
            cancel(run)
        assert states == [StopState.STOPPING]
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_deadline(self, caplog: Any) -> None:
        run, done = make_run(), threading.Event()
        began = time.monotonic()
        with execution(run.run_id) as executed:
            executed.on_cancel(lambda: done.wait(PATIENCE), deadline=0.1)
            cancel(run)
        assert time.monotonic() - began < PATIENCE / 2
        done.set()
        assert "did not end well" in caplog.text
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.parametrize("kind", [ValueError, SystemExit])
    def test_errors(self, kind: type[BaseException], caplog: Any) -> None:
        run = make_run()

        def callback() -> None:
            raise kind("of the callback")

        with execution(run.run_id) as executed:
            executed.on_cancel(callback)
            cancel(run)
        assert f"{kind.__name__}: of the callback" in caplog.text
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_no_threads_left(self, caplog: Any, monkeypatch: Any) -> None:
        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        run = make_run()
        with execution(run.run_id) as executed:
            cancel(run)
            with pytest.raises(RunCancelled):
                work_on(executed)
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", start)
                executed.on_cancel(lambda: None)
        assert "can't start new thread" in caplog.text
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_interrupted_while_it_waits(self, monkeypatch: Any) -> None:
        """As by Ctrl-C: the code has left, and that is recorded."""

        def wait(callbacks: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Callbacks, "wait", wait)
        run = make_run()
        with pytest.raises(KeyboardInterrupt), execution(run.run_id):
            cancel(run)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
