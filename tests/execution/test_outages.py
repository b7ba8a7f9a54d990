"""The watcher and the end of a run without a database, file descriptors or threads."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import errno
import os
import resource
import selectors
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import Error, OperationalError, connections, transaction
from django.utils import timezone

from django_run_cancel.db import retry
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import block, execution, liveness, ownership, watcher
from django_run_cancel.models import get_run_model
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import (
    PATIENCE,
    acancel,
    cancel,
    database_away,
    elsewhere,
    fresh,
    kill_other_sessions,
    rename_table,
    run_async,
    wait_until,
    work_on,
)
from tests.helpers import IS_SQLITE, make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


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
    def test_away_when_it_ends(self, monkeypatch: Any) -> None:
        """Its end is tried for longer than what somebody waits for."""
        monkeypatch.setattr(retry, "BRIEF_DELAYS", ())
        run = make_run()
        table = run._meta.db_table
        back = threading.Timer(0.2, elsewhere, [rename_table, "away", table])
        with execution(run.run_id):
            rename_table(table, "away")
            back.start()
        back.join()
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.skipif(not IS_SQLITE, reason="Elsewhere a table that is missing is no outage.")
    def test_away_when_it_could_not_be_entered(self, monkeypatch: Any) -> None:
        """The error comes soon: no work has been done that could be lost."""
        monkeypatch.setattr(retry, "BRIEF_DELAYS", (0.01,))
        monkeypatch.setattr(retry, "RETRY_DELAYS", (PATIENCE,))
        run = make_run()
        table = run._meta.db_table

        def start(thread: threading.Thread) -> None:
            rename_table(table, "away")
            raise RuntimeError("can't start new thread")

        began = time.monotonic()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", start)
                with pytest.raises(RuntimeError, match="new thread"), execution(run.run_id):
                    pytest.fail("It was entered.")
        finally:
            rename_table("away", table)
        assert time.monotonic() - began < PATIENCE
        assert fresh(run).status == RunStatus.RUNNING

    @pytest.mark.parametrize("error", [None, ValueError("the first")])
    def test_away_for_good(self, error: Exception | None, caplog: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(retry, "RETRY_DELAYS", [0.01])
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

    def test_away_for_good__no_more_tries_than_planned(self, monkeypatch: Any) -> None:
        """Unlike after an interruption, which has another plan."""
        monkeypatch.setattr(retry, "RETRY_DELAYS", ())
        monkeypatch.setattr(retry, "BRIEF_DELAYS", ())
        tries: list[Any] = []

        def finish(held: Any, error: Any) -> None:
            tries.append(error)
            raise OperationalError("away")

        monkeypatch.setattr(ownership.Ownership, "finish", finish)
        with pytest.raises(OperationalError), execution(make_run().run_id):
            pass
        assert len(tries) == 1

    @pytest.mark.parametrize("is_async", [False, True])
    @pytest.mark.parametrize(
        ("place", "name"),
        [
            (ownership.Ownership, "start"),
            (ownership.Ownership, "finish"),
            (block, "record_stopped"),
        ],
    )
    def test_each_statement_is_tried_again(
        self, place: Any, name: str, monkeypatch: Any, *, is_async: bool
    ) -> None:
        monkeypatch.setattr(retry, "RETRY_DELAYS", [0.01])
        real, tries, run = getattr(place, name), [], make_run()

        def fail_once(*args: Any) -> Any:
            tries.append(args)
            if len(tries) == 1:
                raise OperationalError("away")
            return real(*args)

        async def main() -> None:
            async with execution(run.run_id):
                await acancel(run)

        monkeypatch.setattr(place, name, fail_once)
        with suppress(RunCancelled):  # if it is told before it leaves
            if is_async:
                run_async(main)
            else:
                with execution(run.run_id):
                    cancel(run)
        assert len(tries) == 2
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.parametrize("is_async", [False, True])
    def test_when_it_reads_who_has_the_run(self, monkeypatch: Any, *, is_async: bool) -> None:
        monkeypatch.setattr(retry, "RETRY_DELAYS", [0.01])
        real, tries, run = (
            liveness.read_owner,
            [],
            make_run(RunStatus.RUNNING, heartbeat_at=timezone.now()),
        )

        def fail_once(*args: Any) -> Any:
            tries.append(args)
            if len(tries) == 1:
                fresh(run).mark_queued()
                raise OperationalError("away")
            return real(*args)

        async def main() -> None:
            async with execution(run.run_id, take_over="if_dead"):
                pass

        monkeypatch.setattr(liveness, "read_owner", fail_once)
        if is_async:
            run_async(main)
        else:
            with execution(run.run_id, take_over="if_dead"):
                pass
        assert len(tries) == 2
        assert fresh(run).status == RunStatus.COMPLETED

    def test_coroutine__away_for_good(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(retry, "RETRY_DELAYS", [0.01])
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id):
                await sync_to_async(away.__enter__)()

        away = database_away()
        try:
            with pytest.raises(OperationalError):
                run_async(main)
        finally:
            away.__exit__(None, None, None)
        assert fresh(run).status == RunStatus.RUNNING

    def test_inside_a_transaction_of_the_caller(self, monkeypatch: Any) -> None:
        """Nothing can be repeated there, and waiting would keep its locks."""
        monkeypatch.setattr(retry, "RETRY_DELAYS", [PATIENCE])
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

    def test_from_its_first_poll_on(self, settings: Any, monkeypatch: Any) -> None:
        """With LISTEN, the thread polls also if it cannot wait for notifications."""
        settings.RUN_CANCEL_LISTEN = True
        monkeypatch.setattr(selectors, "DefaultSelector", self.none_left)
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            cancel(run)
            work_on(executed)
        monkeypatch.undo()
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def none_left(self) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite needs descriptors to write")
    def test_for_real(self) -> None:
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            first_due = watcher.current.overdue_at
            wait_until(lambda: watcher.current.overdue_at > first_due)  # the thread has looked
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
