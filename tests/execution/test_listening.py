"""RUN_CANCEL_LISTEN: PostgreSQL wakes the watcher when a run is cancelled."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from django.db import connection, transaction

from django_run_cancel.db import writes
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution, watcher
from django_run_cancel.states import RunStatus
from tests.execution.helpers import (
    PATIENCE,
    cancel,
    elsewhere,
    fresh,
    kill_other_sessions,
    wait_until,
    work_on,
)
from tests.helpers import IS_POSTGRESQL, make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


def wait_until_listening() -> None:
    until = time.monotonic() + PATIENCE
    while watcher.current._listening_connection is None:
        assert time.monotonic() < until
        time.sleep(0.001)


class TestListening:
    @pytest.fixture(autouse=True)
    def _listening(self, watched: None, settings: Any) -> None:
        settings.RUN_CANCEL_LISTEN = True
        settings.RUN_CANCEL_POLL_SECONDS = 60

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_long_before_the_next_poll(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 3600
        for _ in range(20):
            run = make_run()
            with execution(run.run_id) as executed:
                wait_until_listening()
                cancel(run)
                with pytest.raises(RunCancelled):
                    work_on(executed)

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
    def test_listens_again_after_an_outage(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 0.05
        with execution(make_run().run_id):
            wait_until_listening()
            before = watcher.current._listening_connection
            kill_other_sessions()
            wait_until(lambda: watcher.current._listening_connection not in {None, before})

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_listens_once(self, settings: Any, monkeypatch: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 0.02
        polls: list[Any] = []
        monkeypatch.setattr(watcher, "poll_runs", polls.append)
        with execution(make_run().run_id):
            wait_until(lambda: len(polls) > 3)
            assert len(watcher.current._listening_connection._notify_handlers) == 1

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_polls_no_more_often_than_told(self, settings: Any, monkeypatch: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 3600
        polls: list[Any] = []
        monkeypatch.setattr(watcher, "poll_runs", polls.append)
        with execution(make_run().run_id):
            wait_until(lambda: bool(polls))
            time.sleep(0.2)
            assert len(polls) == 1
            cancel(make_run())
            wait_until(lambda: len(polls) > 1)

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_told_while_it_polls(self, settings: Any, monkeypatch: Any) -> None:
        """The poll has read the run before, and the connection has nothing more to tell."""
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 3600
        run, told = make_run(), []
        real = watcher.poll_runs

        def poll_runs(watches: Any) -> None:
            real(watches)
            if not told:
                watcher.current._listening_connection.add_notify_handler(told.append)
                elsewhere(cancel, run)
                wait_until(lambda: connection.cursor().execute("SELECT 1") and bool(told))

        monkeypatch.setattr(watcher, "poll_runs", poll_runs)
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            work_on(executed)

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL can tell")
    def test_leaves_nothing_on_a_connection_that_goes_back_to_a_pool(self) -> None:
        with execution(make_run().run_id):
            wait_until_listening()
            listening = watcher.current._listening_connection
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
                patch.setattr(writes, "CHANNEL", "no channel")
                work_on(executed, 0.2)
            elsewhere(cancel, run)
            work_on(executed)
        (message,) = caplog.messages  # once
        assert message.startswith("Cannot listen")

    @pytest.mark.skipif(IS_POSTGRESQL, reason="the others cannot tell")
    def test_polls_where_there_is_nothing_to_listen_to(self, settings: Any, caplog: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 0.05
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            cancel(run)
            work_on(executed)
        assert caplog.messages == []  # it has not tried

    def test_not_unless_the_host_wants_it(self, settings: Any) -> None:
        """PgBouncer has connections that cannot listen, for example."""
        settings.RUN_CANCEL_LISTEN = False
        settings.RUN_CANCEL_POLL_SECONDS = 0.02
        run = make_run()
        with execution(run.run_id) as executed:
            cancel(run)
            with pytest.raises(RunCancelled):
                work_on(executed)  # it has asked the database by now
            assert watcher.current._listening_connection is None
