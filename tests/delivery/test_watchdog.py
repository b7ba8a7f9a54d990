from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.backends import StopOutcome
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.delivery import deliver_due, rotation, watchdog
from django_run_cancel.delivery.watchdog import (
    escalate,
    mark_stalled,
    mark_stalled_if_due,
    presume,
    presume_if_due,
)
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import cancelled, item_of, pass_time, state_of
from tests.helpers import (
    IS_SQLITE,
    ids,
    locked_elsewhere,
    make_run,
    make_runs,
    statuses,
    unwritable,
)


def forces(dummy: DummyBackend) -> list[bool]:
    return [force for _, force in dummy.stopped]


def test_grace_over__told_by_force(dummy: DummyBackend) -> None:
    run = cancelled()
    deliver_due()
    pass_time(28)
    assert not deliver_due()
    pass_time(3)
    assert deliver_due().escalated == 1
    assert forces(dummy) == [False, True]
    assert state_of(run) == ("delivered", "stopping")
    assert (item_of(run).force, item_of(run).next_attempt_at) == (True, None)
    pass_time(60)
    assert not deliver_due()  # once is enough


def test_grace_over__killed_is_evidence(dummy: DummyBackend) -> None:
    run = cancelled()
    deliver_due()
    pass_time(31)
    dummy.outcome = StopOutcome.STOPPED
    deliver_due()
    assert state_of(run) == ("delivered", "killed")


@pytest.mark.parametrize("how", ["acknowledged", "killed", "presumed"])
def test_grace_over__nothing_to_do_for_what_has_stopped(dummy: DummyBackend, how: str) -> None:
    run = cancelled()
    deliver_due()
    record_stopped([run.run_id], how)
    pass_time(31)
    assert not deliver_due()
    item = item_of(run)
    assert (forces(dummy), item.next_attempt_at, item.escalates_at) == ([False], None, None)


def test_grace_over__while_it_is_told_again_and_again(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = StopOutcome.TOLD_ONCE
    deliver_due()
    pass_time(25)
    deliver_due()
    until = item_of(run).next_attempt_at
    assert until is not None
    assert until <= timezone.now() + timedelta(seconds=5.1)  # not later than the grace is over
    pass_time(6)
    assert deliver_due().repeated == 1
    assert forces(dummy) == [False, False, True]
    assert item_of(run).force
    pass_time(30)
    deliver_due()
    assert forces(dummy)[3:] == [True]


def test_grace_over__while_the_executor_was_away(dummy: DummyBackend) -> None:
    cancelled()
    dummy.outcome = OSError("away")
    deliver_due()
    pass_time(31)
    dummy.clear()
    deliver_due()
    assert forces(dummy) == [True]


@pytest.mark.usefixtures("backends")
def test_grace_over__backend_that_cannot_force(dummy: DummyBackend) -> None:
    run = cancelled(backend="gentle")
    deliver_due()
    assert item_of(run).next_attempt_at is None
    pass_time(31)
    assert not deliver_due()
    assert state_of(run) == ("delivered", "stopping")


def test_escalate__a_failed_delivery_waits_for_people(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 1
    run = cancelled()
    dummy.outcome = OSError("away")
    deliver_due()
    pass_time(31)
    assert escalate() == 0
    assert item_of(run).delivery == "failed"


def test_escalate__at_most_so_many(dummy: DummyBackend) -> None:
    for _ in range(3):
        cancelled()
    deliver_due()
    pass_time(31)
    assert [escalate(limit=2), escalate(limit=2), escalate(limit=2)] == [2, 1, 0]


def test_presume(dummy: DummyBackend) -> None:
    run, recent = cancelled(backend="", external_id=""), None
    waiting = cancelled(RunStatus.QUEUED)
    deliver_due()
    pass_time(301)
    recent = cancelled()
    assert deliver_due().presumed == 1
    assert state_of(run) == ("not_needed", "presumed")
    assert state_of(waiting)[1] == "never_started"
    assert state_of(recent)[1] == "stopping"


def test_presume__at_most_so_many(dummy: DummyBackend) -> None:
    for _ in range(3):
        cancelled()
    pass_time(301)
    assert [presume(limit=2), presume(limit=2), presume(limit=2)] == [2, 1, 0]


def test_presume__the_oldest_first(dummy: DummyBackend) -> None:
    runs = [cancelled() for _ in range(3)]
    pass_time(301)
    for age, run in enumerate(runs):
        created = timezone.now() - timedelta(days=1 + age)
        get_run_model().objects.filter(pk=run.pk).update(created_at=created)
    for run in reversed(runs):
        assert presume(limit=1) == 1
        assert state_of(run)[1] == "presumed"
    assert presume(limit=1) == 0


def test_presume_if_due__reads_all_runs_no_more_than_once_a_second(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(rotation, "time", clock)
    runs = [cancelled(backend="", external_id="") for _ in range(3)]
    get_run_model().objects.update(finished_at=timezone.now() - timedelta(seconds=301))
    clock.now += 1.001
    assert [presume_if_due(limit=2), presume_if_due(limit=2)] == [2, 1]  # at once if full
    with CaptureQueriesContext(connection) as captured:
        assert presume_if_due() == 0
    assert len(captured) == 0
    get_run_model().objects.filter(pk=runs[0].pk).update(stop_state="stopping")
    clock.now += 1.001
    assert presume_if_due() == 1


def test_presumed__is_still_delivered(dummy: DummyBackend) -> None:
    """A presumption is not evidence: whatever was promised to be delivered, is."""
    run = cancelled()
    pass_time(301)
    assert presume() == 1
    deliver_due()
    assert len(dummy.stopped) == 1
    assert state_of(run) == ("delivered", "presumed")


def silent(seconds: float, **fields: Any) -> Any:
    ago = timezone.now() - timedelta(seconds=seconds)
    return make_run(RunStatus.RUNNING, **{"started_at": ago, "heartbeat_at": ago, **fields})


def test_mark_stalled__only_when_the_host_wants_it(dummy: DummyBackend, settings: Any) -> None:
    stalled, alive, fresh = silent(100), silent(20), silent(100, heartbeat_at=timezone.now())
    never_beat, queued = silent(100, heartbeat_at=None), make_run()
    assert not deliver_due()
    settings.RUN_CANCEL_STALLED_SECONDS = 60
    assert deliver_due().stalled == 2
    assert statuses(stalled, never_beat, alive, fresh, queued) == [
        "timed_out",
        "timed_out",
        "running",
        "running",
        "queued",
    ]
    stalled.refresh_from_db()
    assert stalled.failure_reason == "No heartbeat for 60 seconds."
    assert stalled.finished_at is not None


def test_mark_stalled_if_due__now_and_then(
    dummy: DummyBackend, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads all running runs."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(rotation, "time", clock)
    settings.RUN_CANCEL_STALLED_SECONDS = 65
    assert mark_stalled_if_due() == 0
    for _ in range(3):
        silent(100)
    assert mark_stalled_if_due() == 0
    clock.now += 6.6
    assert [mark_stalled_if_due(limit=2), mark_stalled_if_due(limit=2)] == [2, 1]  # at once if full
    silent(100)
    clock.now += 6.4
    assert mark_stalled_if_due() == 0
    clock.now += 0.2
    assert mark_stalled_if_due() == 1


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_runs_that_somebody_has_locked__keep_no_other_waiting(
    dummy: DummyBackend, settings: Any
) -> None:
    """Such as by the code of the run itself, in a transaction that takes long."""
    settings.RUN_CANCEL_STALLED_SECONDS = 60
    killed, killed_too, stalled, stalled_too = cancelled(), cancelled(), silent(100), silent(100)
    presumed, presumed_too = (cancelled(backend="", external_id="") for _ in range(2))
    get_run_model().objects.filter(pk__in=[presumed.pk, presumed_too.pk]).update(
        finished_at=timezone.now() - timedelta(seconds=301)
    )
    dummy.outcome = StopOutcome.STOPPED
    before = timezone.now()
    with locked_elsewhere(killed, stalled, presumed):
        report = deliver_due()
        assert (report.delivered, report.repeated, report.stalled, report.presumed) == (1, 1, 1, 1)
    assert [state_of(run) for run in (killed, killed_too)] == [
        ("pending", "stopping"),
        ("delivered", "killed"),
    ]
    assert statuses(stalled, stalled_too) == ["running", "timed_out"]
    due = item_of(killed).next_attempt_at
    assert due is not None
    assert due - before > timedelta(seconds=0.4)  # no spinning
    pass_time(2)
    report = deliver_due()
    assert (report.delivered, report.stalled, report.presumed) == (1, 1, 1)
    assert state_of(killed) == ("delivered", "killed")


def test_mark_stalled__at_most_so_many(dummy: DummyBackend) -> None:
    for _ in range(3):
        silent(100)
    assert [mark_stalled(60, limit=2), mark_stalled(60, limit=2)] == [2, 1]


def test_mark_stalled__row_that_cannot_be_written(dummy: DummyBackend) -> None:
    bad, other = silent(100), silent(100)
    with unwritable(bad):
        assert mark_stalled(60) == 1
    assert statuses(bad, other) == ["running", "timed_out"]


def test_mark_stalled__while_the_database_is_away(dummy: DummyBackend, monkeypatch: Any) -> None:
    """That is no matter of one row."""
    silent(100)

    def away(*args: Any, **values: Any) -> Any:
        raise OperationalError("away")

    monkeypatch.setattr(watchdog.locks, "update_unlocked", away)
    with pytest.raises(OperationalError):
        mark_stalled(60)


def test_mark_stalled__heartbeat_in_the_last_moment(dummy: DummyBackend, monkeypatch: Any) -> None:
    """It is asked for again in the statement that writes."""
    first, second = silent(100), silent(100)

    def beat(*args: Any) -> None:
        get_run_model()._default_manager.filter(pk=second.pk).update(heartbeat_at=timezone.now())

    monkeypatch.setattr(watchdog.logger, "warning", beat)  # while the first is dealt with
    assert mark_stalled(60) == 1
    assert statuses(first, second) == ["timed_out", "running"]


def test_thousand_stopping_runs__do_not_slow_down_an_idle_step(dummy: DummyBackend) -> None:
    cancel_runs(ids(make_runs(1000, RunStatus.RUNNING)), requested_by="tests")
    assert deliver_due(limit=1000).delivered == 1000
    with CaptureQueriesContext(connection) as captured:
        assert not deliver_due()
    assert len([query for query in captured if query["sql"].startswith("SELECT")]) <= 8
    assert CancellationItem.objects.filter(delivery="delivered").count() == 1000
