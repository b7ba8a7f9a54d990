"""Telling executors: what each answer leads to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from django_run_cancel.backends import StopOutcome, StopRequest
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.delivery import (
    DeliveryReport,
    deliver_due,
    policy,
)
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import HANDED_BACK, RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import (
    cancelled,
    item_of,
    pass_time,
    state_of,
)
from tests.helpers import ids, make_run, make_runs


def test_report__of_nothing_is_false() -> None:
    assert not DeliveryReport()


def test_told__once(dummy: DummyBackend) -> None:
    run = cancelled()
    assert deliver_due().delivered == 1
    assert not deliver_due()
    assert dummy.stopped == [(StopRequest(run.run_id, "job", True), False)]
    assert state_of(run) == ("delivered", "stopping")
    assert (item_of(run).attempts, item_of(run).last_error) == (1, "")


@pytest.mark.parametrize("status", [RunStatus.CREATED, RunStatus.QUEUED])
def test_never_started__is_told_as_not_running(dummy: DummyBackend, status: str) -> None:
    run = cancelled(status)
    deliver_due()
    assert dummy.stopped == [(StopRequest(run.run_id, "job", False), False)]
    assert state_of(run) == ("delivered", "never_started")
    assert item_of(run).next_attempt_at is None


def test_running_ones_first_and_all_in_one_call(dummy: DummyBackend, monkeypatch: Any) -> None:
    calls: list[list[bool]] = []
    real = DummyBackend.stop

    def stop(self: DummyBackend, requests: Any, *, force: bool) -> Any:
        calls.append([request.running for request in requests])
        return real(self, requests, force=force)

    monkeypatch.setattr(DummyBackend, "stop", stop)
    runs = make_runs(3) + make_runs(2, RunStatus.RUNNING)
    cancel_runs(ids(runs), requested_by="tests")
    assert deliver_due().delivered == 5
    assert calls == [[True, True, False, False, False]]


def test_stopped__is_evidence(dummy: DummyBackend) -> None:
    running, waiting = cancelled(), cancelled(RunStatus.QUEUED)
    dummy.outcome = StopOutcome.STOPPED
    assert deliver_due().delivered == 2
    assert state_of(running) == ("delivered", "killed")
    assert state_of(waiting) == ("delivered", "never_started")
    assert item_of(running).next_attempt_at is None


def test_unsupported__is_said(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = StopOutcome.UNSUPPORTED
    deliver_due()
    assert state_of(run) == ("delivered", "stopping")
    assert "own checkpoints" in item_of(run).last_error


@pytest.mark.parametrize("end", ["acknowledged", "killed"])
def test_told_once__repeated_until_it_has_stopped(dummy: DummyBackend, end: str) -> None:
    run = cancelled()
    dummy.outcome = StopOutcome.TOLD_ONCE
    for attempts in range(1, 5):
        assert deliver_due().repeated == 1
        assert not deliver_due()
        assert state_of(run) == ("pending", "stopping")
        assert item_of(run).attempts == attempts
        pass_time(3)
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    record_stopped([run.run_id], end)
    assert deliver_due().delivered == 1
    assert state_of(run) == ("delivered", end)
    assert len(dummy.stopped) == 4  # no need to tell a run that has stopped


def test_told_once__repetitions_are_no_failures(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = StopOutcome.TOLD_ONCE
    for _ in range(12):
        assert deliver_due().repeated == 1
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    dummy.outcome = OSError("broker is away for a moment")
    assert deliver_due().failed == 1
    item = item_of(run)
    assert item.delivery == "pending"
    assert item.next_attempt_at - timezone.now() <= timedelta(seconds=64)  # type: ignore[operator]


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.QUEUED])
def test_told_once__not_for_ever(dummy: DummyBackend, status: str) -> None:
    run = cancelled(status)
    dummy.outcome = StopOutcome.TOLD_ONCE
    assert deliver_due().repeated == 1
    pass_time(301)
    assert deliver_due().delivered == 1
    assert item_of(run).delivery == "delivered"
    pass_time(100)
    deliver_due()
    assert len(dummy.stopped) == 2


def test_told_once__a_few_times_if_it_never_started(dummy: DummyBackend) -> None:
    """Whoever did not hear it is refused at the start."""
    run = cancelled(RunStatus.QUEUED)
    dummy.outcome = StopOutcome.TOLD_ONCE
    for _ in range(5):
        deliver_due()
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    assert len(dummy.stopped) == policy.MAX_REPEATS == 3
    assert item_of(run).delivery == "delivered"


def test_waiting_to_be_tried_again__is_running_unless_handed_back(dummy: DummyBackend) -> None:
    handed_back, at_work, unknown = (make_run(RunStatus.RUNNING) for _ in range(3))
    for run, holder in ((handed_back, HANDED_BACK), (at_work, uuid4()), (unknown, None)):
        run.mark_queued()
        rows = get_run_model()._default_manager.filter(pk=run.pk)
        rows.update(started_at=timezone.now(), execution_id=holder, external_id=run.run_id)
    cancel_runs(ids([handed_back, at_work, unknown]), requested_by="tests")
    dummy.outcome = StopOutcome.STOPPED
    deliver_due()
    assert {request.run_id: request.running for request, _ in dummy.stopped} == {
        handed_back.run_id: False,
        at_work.run_id: True,
        unknown.run_id: True,
    }
    assert [state_of(run)[1] for run in (handed_back, at_work, unknown)] == [
        "killed",
        "stopping",
        "stopping",
    ]


def test_told_once__of_a_run_that_has_been_deleted(dummy: DummyBackend) -> None:
    run = cancelled()
    get_run_model()._default_manager.all().delete()
    dummy.outcome = StopOutcome.TOLD_ONCE
    assert deliver_due().delivered == 1
    assert dummy.stopped == [(StopRequest(run.run_id, "job", True), False)]


def test_force__asked_for(dummy: DummyBackend) -> None:
    run = cancelled(force=True)
    assert item_of(run).force
    deliver_due()
    assert [force for _, force in dummy.stopped] == [True]
    assert item_of(run).next_attempt_at is None


@pytest.mark.parametrize(
    ("was_waiting", "is_kept", "stop_state"),
    [(False, True, "killed"), (True, True, "stopping"), (False, False, "stopping")],
)
def test_asked_again__stopped_proves_no_more_than_at_first(
    dummy: DummyBackend, was_waiting: bool, is_kept: bool, stop_state: str
) -> None:
    """The item of the later request does not tell whether the job had begun; the first one does."""
    run = make_run(RunStatus.RUNNING, started_at=timezone.now())
    if was_waiting:  # to be tried again, while the code of the first try may still run
        run.mark_queued()
        get_run_model()._default_manager.filter(pk=run.pk).update(external_id="job")
    cancel_runs([run.run_id], requested_by="tests")
    first = item_of(run)
    CancellationItem.objects.filter(pk=first.pk).delete()
    cancel_runs([run.run_id], requested_by="tests", force=True)
    if is_kept:
        first.delivery, first.next_attempt_at = "delivered", None
        first.save(force_insert=True)
    dummy.outcome = StopOutcome.STOPPED
    deliver_due()
    assert [request.run_id for request, _ in dummy.stopped] == [run.run_id]
    run.refresh_from_db()
    assert run.stop_state == stop_state
