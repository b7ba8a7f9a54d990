"""Heartbeats: when they are written, and that they wait for no lock."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import time
from typing import Any

import pytest
from django.db import Error, transaction

from django_run_cancel.db import locks
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution, watcher
from tests.execution.helpers import (
    cancel,
    elsewhere,
    fresh,
    wait_until,
    work_on,
)
from tests.helpers import IS_SQLITE, make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestHeartbeat:
    def test_while_the_code_asks(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 60
        run = make_run()
        with execution(run.run_id) as executed:
            settings.RUN_CANCEL_HEARTBEAT_SECONDS = 1e-6
            beats = []
            for ask in (True, True, False):
                if ask:
                    executed.checkpoint()
                watcher.write_heartbeats([executed._watch])
                beats.append(fresh(run).heartbeat_at)
        assert run.started_at < beats[0] < beats[1] == beats[2]

    def test_first_one__without_a_checkpoint(self, settings: Any) -> None:
        """Entering is a sign of life, and that the process lives is none."""
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 60
        run = make_run()
        with execution(run.run_id) as executed:
            settings.RUN_CANCEL_HEARTBEAT_SECONDS = 1e-6
            watcher.write_heartbeats([executed._watch])
            first = fresh(run).heartbeat_at
            watcher.poll_runs([executed._watch])
            watcher.write_heartbeats([executed._watch])
            assert fresh(run).heartbeat_at == first > run.started_at

    def test_due_for_long(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 60
        run = make_run()
        with execution(run.run_id) as executed:
            executed._watch.beat_at = -3600.0  # the clock counts from zero, or more
            watcher.write_heartbeats([executed._watch])
            assert fresh(run).heartbeat_at > run.started_at

    def test_of_the_thread(self, settings: Any) -> None:
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.02
        run = make_run()
        with execution(run.run_id) as executed:
            first = executed.run.heartbeat_at
            wait_until(lambda: executed.checkpoint() or fresh(run).heartbeat_at > first)

    def test_not_more_often(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            work_on(executed, 0.3)
            assert fresh(run).heartbeat_at == executed.run.heartbeat_at

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
            wait_until(lambda: fresh(run).heartbeat_at > first)  # without another checkpoint

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
                patch.setattr(locks, "update_unlocked", update)
                with pytest.raises(Error, match="away"):
                    watcher.write_heartbeats([executed._watch])
            assert executed._watch.code_is_alive
            watcher.write_heartbeats([executed._watch])
            assert not executed._watch.code_is_alive
            assert fresh(run).heartbeat_at > run.started_at
