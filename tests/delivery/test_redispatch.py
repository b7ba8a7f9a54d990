"""Handing runs over again whose dispatch has failed, or was cut short."""

from __future__ import annotations

import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.backends import TaskCall, get_backend
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import dispatch
from django_run_cancel.delivery import dispatcher as module
from django_run_cancel.delivery.dispatcher import redispatch
from django_run_cancel.exceptions import BackendError
from django_run_cancel.models import get_run_model
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import created, let_dispatches_fall_due
from tests.helpers import IS_SQLITE, locked_elsewhere, unwritable


def test_executor_away__sent_again_under_the_same_id(
    dummy: DummyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    run = created()
    dummy.outcome = BackendError("broker is away")
    dispatch(run, "dummy")
    assert "broker is away" in caplog.text
    assert redispatch() == 0  # not due yet
    let_dispatches_fall_due()
    assert redispatch() == 0
    run.refresh_from_db()
    assert (run.status, run.dispatched_at) == (RunStatus.QUEUED, None)
    assert run.dispatch_due_at > timezone.now()
    dummy.clear()
    let_dispatches_fall_due()
    assert redispatch() == 1
    assert dummy.dispatched == [run.external_id]
    let_dispatches_fall_due()
    assert redispatch() == 0


def test_dead_backend__costs_some_time_and_holds_nobody_up(
    dummy: DummyBackend, settings: Any, monkeypatch: Any
) -> None:
    settings.RUN_CANCEL_BACKENDS = {
        **settings.RUN_CANCEL_BACKENDS,
        "dead": {"BACKEND": "django_run_cancel.testing.DummyBackend"},
    }
    dead = get_backend("dead")
    assert isinstance(dead, DummyBackend)
    dead.outcome = BackendError("dead")
    attempts = []
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=time.sleep)
    monkeypatch.setattr(module, "time", clock)

    def hang(run: Any, call: TaskCall) -> None:
        attempts.append(run)
        clock.now += 0.6 * module.MAX_FAILURE_SECONDS
        DummyBackend.dispatch(dead, run)

    monkeypatch.setattr(module, "STEP_SECONDS", 3 * module.MAX_FAILURE_SECONDS)
    monkeypatch.setattr(dead, "dispatch", hang)
    runs = [created() for _ in range(6)]
    for run in runs:
        dispatch(run, "dead")
    alive = created()
    dispatch(alive, "dummy")
    attempts.clear()
    let_dispatches_fall_due()
    assert redispatch(limit=6) == 0
    assert len(attempts) == 2
    past = timezone.now() - timedelta(seconds=1)
    get_run_model()._default_manager.filter(pk=alive.pk).update(dispatch_due_at=past)
    assert redispatch(limit=6) == 1  # all six of the dead are due later
    assert dummy.dispatched == [alive.external_id] * 2


def test_executor_that_refuses_some__is_not_away(dummy: DummyBackend, monkeypatch: Any) -> None:
    """What is refused at once costs no time, and keeps no other run of the backend waiting."""
    refused, good = [created() for _ in range(9)], created()
    ids: set[str] = set()
    real = DummyBackend.dispatch

    def reach(self: DummyBackend, given: Any, call: TaskCall) -> None:
        if given.external_id in ids:
            raise BackendError("a process of another host")
        real(self, given, call)

    monkeypatch.setattr(DummyBackend, "dispatch", reach)
    for run in refused:
        monkeypatch.setattr(dummy, "new_external_id", lambda run: ids.add(run.run_id) or run.run_id)
        dispatch(run, "dummy")
    monkeypatch.undo()
    monkeypatch.setattr(DummyBackend, "dispatch", reach)
    dummy.outcome = BackendError("away for a moment")
    dispatch(good, "dummy")
    dummy.clear()
    let_dispatches_fall_due()
    assert redispatch() == 1
    assert dummy.dispatched == [good.external_id]


def test_dispatch_that_exits__has_failed(dummy: DummyBackend, monkeypatch: Any) -> None:
    def leave(self: DummyBackend, given: Any, call: TaskCall) -> None:
        raise SystemExit("no licence")

    monkeypatch.setattr(DummyBackend, "dispatch", leave)
    run = created()
    dispatch(run, "dummy")
    let_dispatches_fall_due()
    assert redispatch() == 0
    run.refresh_from_db()
    assert run.dispatch_due_at > timezone.now()


def test_executor_away_for_long__is_said_loudly(
    dummy: DummyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    run = created()
    dummy.outcome = BackendError("broker is away")
    dispatch(run, "dummy")
    let_dispatches_fall_due()
    redispatch()
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    let_dispatches_fall_due(queued_at=timezone.now() - timedelta(seconds=301))
    redispatch()
    assert caplog.records[-1].levelname == "ERROR"
    run.refresh_from_db()
    assert run.dispatch_due_at > timezone.now() + timedelta(seconds=140)


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_run_that_somebody_has_locked__keeps_no_other_waiting(dummy: DummyBackend) -> None:
    locked, other = created(), created()
    dummy.outcome = BackendError("away")
    for run in (locked, other):
        dispatch(run, "dummy")
    dummy.clear()
    let_dispatches_fall_due()
    with locked_elsewhere(locked):
        assert redispatch() == 1
    assert dummy.dispatched == [other.external_id]
    assert redispatch() == 1


@pytest.mark.parametrize(("waited", "longest"), [(0, 2), (100, 100), (3600, 300), (10**6, 300)])
def test_dispatched_again__after_as_long_as_it_has_waited_within_bounds(
    dummy: DummyBackend, waited: int, longest: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "jitter", lambda wait: wait / 2)
    dummy.outcome = BackendError("away")
    run = created()
    dispatch(run, "dummy")
    began = timezone.now()
    let_dispatches_fall_due(queued_at=began - timedelta(seconds=waited))
    assert redispatch() == 0
    run.refresh_from_db()
    # A slow test only adds to the time that the run has waited.
    slack = (timezone.now() - began) * 2
    wait = run.dispatch_due_at - began
    assert timedelta(seconds=longest / 2) <= wait <= timedelta(seconds=longest / 2) + slack


def test_run_that_cannot_be_written__keeps_no_other_waiting(dummy: DummyBackend) -> None:
    bad, other = created(), created()
    dummy.outcome = BackendError("away")
    for run in (bad, other):
        dispatch(run, "dummy")
    dummy.clear()
    let_dispatches_fall_due()
    with unwritable(bad):
        assert redispatch() == 1
    assert dummy.dispatched == [other.external_id]
    assert redispatch() == 1


def test_cancelled_in_the_last_moment__is_not_sent(dummy: DummyBackend, monkeypatch: Any) -> None:
    dummy.outcome = BackendError("away")
    first, second = created(), created()
    for run in (first, second):
        dispatch(run, "dummy")
    dummy.clear()
    let_dispatches_fall_due()
    real = DummyBackend.dispatch

    def meanwhile(self: DummyBackend, given: Any, call: TaskCall) -> None:
        real(self, given, call)
        other = second if given.run_id == first.run_id else first
        cancel_runs([other.run_id], requested_by="tests")

    monkeypatch.setattr(DummyBackend, "dispatch", meanwhile)
    assert redispatch() == 1
    assert len(dummy.dispatched) == 1


def test_slow_executor__leaves_time_for_the_rest_of_a_step(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    dummy.outcome = BackendError("away")
    for run in [created() for _ in range(4)]:
        dispatch(run, "dummy")
    dummy.clear()
    let_dispatches_fall_due()
    real, passed = DummyBackend.dispatch, [0.0]

    def slow(self: DummyBackend, given: Any, call: TaskCall) -> None:
        passed[0] += module.STEP_SECONDS * 0.6
        real(self, given, call)

    monkeypatch.setattr(DummyBackend, "dispatch", slow)
    monkeypatch.setattr(module.time, "monotonic", lambda: passed[0])
    assert [redispatch(), redispatch()] == [2, 2]


def test_backend_that_is_not_configured_any_more(dummy: DummyBackend, settings: Any) -> None:
    run = created()
    dispatch(run, "dummy")
    settings.RUN_CANCEL_BACKENDS = {}
    past = timezone.now() - timedelta(seconds=1)
    get_run_model()._default_manager.update(dispatch_due_at=past)
    assert redispatch() == 0
    run.refresh_from_db()
    assert run.dispatch_due_at > timezone.now()


def test_two_workers__each_run_is_sent_once(dummy: DummyBackend, monkeypatch: Any) -> None:
    dummy.outcome = BackendError("away")
    runs = [created(), created()]
    for run in runs:
        dispatch(run, "dummy")
    dummy.clear()
    let_dispatches_fall_due()
    real = DummyBackend.dispatch
    nested = []

    def meanwhile(self: DummyBackend, given: Any, call: TaskCall) -> None:
        if not nested:
            nested.append(-1)
            nested[0] = redispatch()  # of the other one, which this pass has also seen
        real(self, given, call)

    monkeypatch.setattr(DummyBackend, "dispatch", meanwhile)
    assert redispatch() == 1
    assert nested == [1]
    assert sorted(dummy.dispatched) == sorted(run.external_id for run in runs)
