from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.db.threads import call_in_thread
from django_run_cancel.models import get_run_model
from django_run_cancel.signals import run_cancelled, run_stopped
from django_run_cancel.states import RunStatus, StopState
from tests.helpers import IS_SQLITE, ids, locked_elsewhere, make_run

pytestmark = pytest.mark.django_db
Capture = Callable[..., Any]


@pytest.fixture
def stopped() -> Iterator[list[tuple[str, ...]]]:
    received: list[tuple[str, ...]] = []

    def receive(sender: Any, run_id: str, cancellation_id: str, stop_state: str, **_: Any) -> None:
        assert sender is get_run_model()
        received.append((run_id, cancellation_id, stop_state))

    run_stopped.connect(receive)
    yield received
    run_stopped.disconnect(receive)


def cancel(*runs: Any) -> str:
    record = cancel_runs(ids(list(runs)), requested_by="tests").cancellation
    assert record is not None
    return str(record.cancellation_id)


@pytest.mark.parametrize("state", [StopState.ACKNOWLEDGED, StopState.KILLED, StopState.PRESUMED])
def test_record_stopped__once(
    state: StopState, stopped: Any, django_capture_on_commit_callbacks: Capture
) -> None:
    run = make_run(RunStatus.RUNNING)
    request = cancel(run)
    with django_capture_on_commit_callbacks(execute=True):
        assert record_stopped([run.run_id], state) == [run.run_id]
        assert stopped == []  # not before the commit
    with django_capture_on_commit_callbacks(execute=True):
        assert record_stopped([run.run_id], StopState.PRESUMED) == []
    assert stopped == [(run.run_id, request, state)]
    run.refresh_from_db()
    assert run.stop_state == state
    assert run.stopped_at is not None


def test_record_stopped__only_what_stops(stopped: Any) -> None:
    running, waiting, unknown = make_run(RunStatus.RUNNING), make_run(), "tsk_unknown"
    cancel(waiting)
    assert record_stopped([running.run_id, waiting.run_id, unknown], "killed") == []
    running.refresh_from_db()
    assert (running.stop_state, running.stopped_at) == ("", None)


@pytest.mark.django_db(transaction=True)
def test_record_stopped__somebody_knows_better_meanwhile(stopped: Any) -> None:
    runs = [make_run(RunStatus.RUNNING), make_run(RunStatus.RUNNING)]
    cancel(*runs)

    def acknowledge(**arguments: Any) -> None:
        for run in runs:
            record_stopped([run.run_id], "acknowledged")

    run_stopped.connect(acknowledge)
    try:
        assert len(record_stopped(ids(runs), "presumed")) == 1
    finally:
        run_stopped.disconnect(acknowledge)
    assert sorted(state for *_, state in stopped) == ["acknowledged", "presumed"]


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
@pytest.mark.django_db(transaction=True)
def test_record_stopped__waits_for_a_locked_row() -> None:
    run = make_run(RunStatus.RUNNING)
    cancel(run)
    with locked_elsewhere(run):
        assert record_stopped([run.run_id], "acknowledged", wait=False) == []
        future = call_in_thread(lambda: record_stopped([run.run_id], "acknowledged"))
        with pytest.raises(TimeoutError):
            future.result(0.5)
    assert future.result(120) == [run.run_id]
    run.refresh_from_db()
    assert run.stop_state == "acknowledged"


@pytest.mark.parametrize("state", ["stopping", "never_started", "", "dead"])
def test_record_stopped__not_an_end(state: str) -> None:
    with pytest.raises(ValueError, match="acknowledged, killed, presumed"):
        record_stopped(["tsk_x"], state)


def test_never_started_is_evidence(
    stopped: Any, django_capture_on_commit_callbacks: Capture
) -> None:
    waiting, running = make_run(), make_run(RunStatus.RUNNING)
    retried = make_run(RunStatus.RUNNING)
    retried.mark_queued()
    type(retried).objects.filter(pk=retried.pk).update(started_at=retried.created_at)
    order: list[str] = []

    def receive(run_id: str, **_: Any) -> None:
        order.append(f"cancelled {run_id}, {len(stopped)} stopped")

    run_cancelled.connect(receive)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            request = cancel(waiting, running, retried)
        with django_capture_on_commit_callbacks(execute=True):
            cancel(waiting, running, retried)
    finally:
        run_cancelled.disconnect(receive)
    assert stopped == [(waiting.run_id, request, "never_started")]
    assert order[0] == f"cancelled {waiting.run_id}, 0 stopped"
    assert len(order) == 3
