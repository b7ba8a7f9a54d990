"""Executors that SIGSTOP freezes for longer than a grace, and that SIGCONT lets go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.delivery.watchdog import mark_stalled
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import Execution, execution
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import DummyBackend, wait_until
from tests.delivery.helpers import pass_time
from tests.faults.invariants import assert_rows_sound
from tests.faults.processes import Child
from tests.helpers import make_run, statuses

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("watched"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]

STOPS = (RunCancelled, RunInProgress, TransitionNotAllowed)


def returns_when_told(executed: Execution) -> None:
    """Return without another checkpoint, as code does that was about to end when it was frozen."""
    run = executed.run
    while get_run_model()._base_manager.filter(pk=run.pk, title="").exists():
        time.sleep(0.02)


def checks(executed: Execution) -> None:
    """Go on until a checkpoint stops it."""
    while True:
        executed.checkpoint()
        time.sleep(0.02)


def start_frozen(run: Any, code: Callable[[Execution], None]) -> Child:
    """Execute a run in another process, and freeze that in the middle of the code."""

    def work() -> str:
        try:
            with execution(run.run_id) as executed:
                code(executed)
        except STOPS as error:
            return type(error).__name__
        return "returned"

    child = Child(work)
    try:
        wait_until(lambda: statuses(run) == ["running"], "the start of the run")
    finally:
        child.send_signal(signal.SIGSTOP)
    child.wait_until_stopped()
    return child


def go_on(child: Child, run: Any) -> Any:
    """Let the process go on, and return what came of its code."""
    get_run_model()._base_manager.filter(pk=run.pk).update(title="go on")
    child.send_signal(signal.SIGCONT)
    return child.wait().answer


@pytest.mark.parametrize("code", [checks, returns_when_told])
def test_cancelled_and_presumed_stopped(dummy: DummyBackend, code: Any) -> None:
    """It is told by force after the grace, presumed to have stopped, and cannot come back."""
    run = make_run()
    child = start_frozen(run, code)
    cancel_runs([run.run_id], requested_by="tests")
    deliver_due()
    pass_time(31)
    deliver_due()
    assert [force for _, force in dummy.stopped] == [False, True]
    pass_time(300)
    assert deliver_due().presumed == 1
    assert go_on(child, run) == ("RunCancelled" if code is checks else "returned")
    run.refresh_from_db()
    assert (run.status, run.stop_state) == ("cancelled", "presumed")
    assert_rows_sound(everything_done=True)


@pytest.mark.parametrize("code", [checks, returns_when_told])
def test_cancelled_and_back_in_time(dummy: DummyBackend, code: Any) -> None:
    """Before it is presumed stopped, it says itself that it has stopped."""
    run = make_run()
    child = start_frozen(run, code)
    cancel_runs([run.run_id], requested_by="tests")
    go_on(child, run)
    run.refresh_from_db()
    assert (run.status, run.stop_state) == ("cancelled", "acknowledged")
    deliver_due()
    assert_rows_sound(everything_done=True)


@pytest.mark.parametrize("code", [checks, returns_when_told])
def test_taken_over(dummy: DummyBackend, code: Any) -> None:
    """What another execution has made of the run stays."""
    run = make_run()
    child = start_frozen(run, code)
    an_hour_ago = timezone.now() - timedelta(hours=1)
    get_run_model()._base_manager.update(heartbeat_at=an_hour_ago)
    with execution(run.run_id, take_over=60):
        assert go_on(child, run) == ("RunInProgress" if code is checks else "returned")
        assert statuses(run) == ["running"]
    assert statuses(run) == ["completed"]
    assert_rows_sound()


@pytest.mark.parametrize("code", [checks, returns_when_told])
def test_timed_out(dummy: DummyBackend, code: Any) -> None:
    run = make_run()
    child = start_frozen(run, code)
    an_hour_ago = timezone.now() - timedelta(hours=1)
    get_run_model()._base_manager.update(heartbeat_at=an_hour_ago)
    assert mark_stalled(60) == 1
    assert go_on(child, run) == ("TransitionNotAllowed" if code is checks else "returned")
    assert statuses(run) == ["timed_out"]
    assert_rows_sound()
