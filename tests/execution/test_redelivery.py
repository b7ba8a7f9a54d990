"""Messages that are delivered again: a dead execution loses its run, a live one keeps it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db.models import DateTimeField, Value
from django.db.models.functions import Cast
from django.utils import timezone

from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.execution import execution, liveness
from django_run_cancel.execution.liveness import (
    Liveness,
    Owner,
    read_owner,
    seconds_until_dead,
    wait_for_owner,
)
from django_run_cancel.models import run_rows
from django_run_cancel.states import HANDED_BACK, RunStatus, StopState
from tests.execution.helpers import cancel, fresh, run_async
from tests.helpers import make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


def run_of_a_dead_worker(silent_for: float = 0.0) -> Any:
    """Return a run whose process was killed: nobody writes its heartbeat."""
    return make_run(
        RunStatus.RUNNING,
        execution_id=uuid4(),
        heartbeat_at=timezone.now() - timedelta(seconds=silent_for),
    )


class TestOwner:
    def test_waits_for_three_heartbeats(self, settings: Any) -> None:
        assert seconds_until_dead() == 45
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 2
        assert seconds_until_dead() == 6
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 100
        assert seconds_until_dead() == 100

    def test_silent(self) -> None:
        owner = read_owner(run_of_a_dead_worker(silent_for=10).run_id)
        assert owner.liveness is Liveness.SILENT
        assert 0 < owner.dead_in <= 35

    def test_dead(self) -> None:
        run = run_of_a_dead_worker(silent_for=60)
        owner = read_owner(run.run_id)
        assert owner == Owner(Liveness.DEAD, run.execution_id, owner.heartbeat_at, 0.0)

    def test_dead_without_any_heartbeat(self) -> None:
        run = make_run(RunStatus.RUNNING)
        assert read_owner(run.run_id).liveness is Liveness.DEAD
        with execution(run.run_id, take_over="if_dead"):
            pass
        assert fresh(run).status == RunStatus.COMPLETED

    def test_alive_since_its_heartbeat_advances(self) -> None:
        run = run_of_a_dead_worker(silent_for=10)
        before = read_owner(run.run_id)
        assert read_owner(run.run_id, before).liveness is Liveness.SILENT
        run_rows(pk=run.pk).update(heartbeat_at=timezone.now())
        assert read_owner(run.run_id, before).liveness is Liveness.ALIVE

    @pytest.mark.parametrize("number", [1, 2**128 - 1])
    def test_alive_since_another_has_started(self, number: int) -> None:
        run = run_of_a_dead_worker(silent_for=10)
        before = read_owner(run.run_id)
        run_rows(pk=run.pk).update(execution_id=UUID(int=number))
        assert read_owner(run.run_id, before).liveness is Liveness.ALIVE

    @pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.FAILED, RunStatus.CANCELLED])
    def test_not_running(self, status: str) -> None:
        assert wait_for_owner(make_run(status).run_id) is Liveness.NOT_RUNNING

    def test_unknown(self) -> None:
        assert wait_for_owner("tsk_unknown") is Liveness.NOT_RUNNING


class TestTime:
    """With a clock of the database that stands still."""

    NOW = datetime(2030, 1, 1, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("silent_for", "dead_in", "state"),
        [
            (10, 90, Liveness.SILENT),
            (99.5, 0.5, Liveness.SILENT),
            (100, 0, Liveness.SILENT),
            (100.5, 0, Liveness.DEAD),
            (1000, 0, Liveness.DEAD),
        ],
    )
    def test_of_silence(
        self, silent_for: float, dead_in: float, state: Liveness, settings: Any, monkeypatch: Any
    ) -> None:
        now = partial(Cast, Value(self.NOW), DateTimeField())
        monkeypatch.setattr(liveness, "DatabaseNow", now)
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 100
        heartbeat_at = self.NOW - timedelta(seconds=silent_for)
        run = make_run(RunStatus.RUNNING, execution_id=uuid4(), heartbeat_at=heartbeat_at)
        assert read_owner(run.run_id) == Owner(state, run.execution_id, heartbeat_at, dead_in)

    @pytest.mark.parametrize(
        ("dead_in", "poll", "heartbeat", "expected"),
        [(5, 10, 10, 5), (0, 10, 10, 0), (5, 2, 10, 2), (5, 10, 2, 2)],
    )
    def test_of_a_pause(
        self,
        dead_in: float,
        poll: float,
        heartbeat: float,
        expected: float,
        settings: Any,
        monkeypatch: Any,
    ) -> None:
        """A little longer than until it is dead, as it is to be dead when it is read again."""
        settings.RUN_CANCEL_POLL_SECONDS = poll
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = heartbeat
        owners = iter([Owner(Liveness.SILENT, dead_in=dead_in), Owner(Liveness.DEAD)])
        pauses: list[float] = []
        monkeypatch.setattr(liveness, "read_owner", lambda *args: next(owners))
        monkeypatch.setattr(liveness, "time", SimpleNamespace(sleep=pauses.append))
        assert wait_for_owner("tsk_1") is Liveness.DEAD
        (pause,) = pauses
        assert expected <= pause < expected + 0.1


class TestDeliveredAgain:
    def test_after_the_worker_was_killed(self, settings: Any) -> None:
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 0.5
        run = run_of_a_dead_worker()
        with execution(run.run_id, take_over="if_dead") as executed:
            silence = executed.run.heartbeat_at - run.heartbeat_at
            assert silence.total_seconds() > 0.5  # not before it is known
            assert fresh(run).execution_id == executed.execution_id
        assert fresh(run).status == RunStatus.COMPLETED

    def test_while_the_worker_lives(self, settings: Any) -> None:
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.05
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 600
        run = make_run()
        with execution(run.run_id, heartbeat="process") as first:
            with pytest.raises(RunInProgress), execution(run.run_id, take_over="if_dead"):
                pytest.fail("It started twice.")
            assert not first.cancel_requested
        assert fresh(run).status == RunStatus.COMPLETED

    def test_two_at_once(self, settings: Any, monkeypatch: Any) -> None:
        """One takes it over; the other finds that when it tries to."""
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 600
        run = run_of_a_dead_worker()
        monkeypatch.setattr(
            "django_run_cancel.execution.block.wait_for_owner", lambda *args: Liveness.DEAD
        )
        with pytest.raises(RunInProgress), execution(run.run_id, take_over="if_dead"):
            pytest.fail("It started twice.")
        assert fresh(run).execution_id == run.execution_id

    def test_handed_back_meanwhile(self, monkeypatch: Any) -> None:
        run = run_of_a_dead_worker()

        def wait(run_id: str, delays: Any) -> Liveness:
            values = {"status": RunStatus.QUEUED, "execution_id": HANDED_BACK}
            run_rows(pk=run.pk).update(**values)
            return Liveness.NOT_RUNNING

        monkeypatch.setattr("django_run_cancel.execution.block.wait_for_owner", wait)
        with execution(run.run_id, take_over="if_dead"):
            pass
        assert fresh(run).status == RunStatus.COMPLETED

    def test_cancelled_after_its_worker_had_died(self) -> None:
        """It does not run, and says nothing of the execution that nobody has heard of."""
        run = run_of_a_dead_worker(silent_for=60)
        cancel(run)
        with pytest.raises(RunCancelled), execution(run.run_id, take_over="if_dead"):
            pytest.fail("It came back.")
        assert fresh(run).stop_state == StopState.STOPPING

    def test_coroutine__is_refused_at_once(self) -> None:
        run = run_of_a_dead_worker()

        async def main() -> None:
            async with execution(run.run_id):
                pytest.fail("It started twice.")

        with pytest.raises(RunInProgress):
            run_async(main)
        assert fresh(run).execution_id == run.execution_id

    def test_coroutines(self, settings: Any) -> None:
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.05
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 0.5
        run, alive = run_of_a_dead_worker(), make_run()

        async def main() -> None:
            async with execution(run.run_id, take_over="if_dead"):
                pass
            settings.RUN_CANCEL_TAKE_OVER_SECONDS = 600
            async with execution(alive.run_id, heartbeat="process"):
                with pytest.raises(RunInProgress):
                    async with execution(alive.run_id, take_over="if_dead"):
                        pytest.fail("It started twice.")

        run_async(main)
        assert statuses(run, alive) == [RunStatus.COMPLETED] * 2

    @pytest.mark.parametrize("word", ["always", "when dead"])
    def test_another_word(self, word: Any) -> None:
        with pytest.raises(ValueError, match="take_over must be"):
            execution("tsk_1", take_over=word)


def test_two_statements_in_the_life_of_an_execution(django_assert_max_num_queries: Any) -> None:
    """One starts it and one ends it; a third reads it where the database returns no rows."""
    run = make_run()
    with django_assert_max_num_queries(3), execution(run.run_id):
        pass
