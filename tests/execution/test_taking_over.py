"""Taking over: an execution that lost its run is stopped and writes nothing more."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import (
    connection,
    transaction,
)
from django.utils import timezone

from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.execution import execution, watcher
from django_run_cancel.models import run_rows
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import (
    cancel,
    fresh,
    wait_until,
    work_on,
)
from tests.helpers import IS_POSTGRESQL, make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


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

    @pytest.mark.parametrize("seconds", [0, 1])
    def test_numbers_that_equal_booleans(self, seconds: int) -> None:
        """They are seconds all the same."""
        now = timezone.now()
        silent = make_run(RunStatus.RUNNING, heartbeat_at=now - timedelta(hours=1))
        alive = make_run(RunStatus.RUNNING, heartbeat_at=now + timedelta(hours=1))
        with execution(silent.run_id, take_over=seconds):
            pass
        with pytest.raises(RunInProgress), execution(alive.run_id, take_over=seconds):
            pytest.fail("It started twice.")

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
            watcher.write_heartbeats([first._watch])
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
                    before = executed.run.heartbeat_at
                    wait_until(lambda: executed.checkpoint() or fresh(run).heartbeat_at > before)
            finally:
                cursor.execute("DROP TABLE page")
