"""Executions, deliveries and dispatches whose sessions end, or lose an answer, at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due, dispatch
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import DummyBackend
from tests.execution.helpers import cancel, elsewhere, work_on
from tests.faults.disturbances import end_session, every_step, needs_server, through_proxy
from tests.faults.helpers import book, booked, empty_tables, finish_everything
from tests.faults.invariants import assert_rows_sound
from tests.helpers import ids, make_run

pytestmark = [pytest.mark.django_db(transaction=True), needs_server]


@contextmanager
def ending_sessions() -> Iterator[Callable[[], None]]:
    yield end_session


faults = pytest.mark.parametrize("fault", [ending_sessions, through_proxy])


class Retry(Exception):
    """What code raises that its executor is to try again."""


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("ending", ["completed", "failed", "queued", "cancelled"])
@faults
def test_execution(dummy: DummyBackend, fault: Any, ending: str) -> None:
    """The database is away for a moment: the run starts, and how it ended is recorded."""
    runs: list[Any] = []

    def prepare() -> None:
        empty_tables()
        runs[:] = [make_run()]

    def work() -> str:
        entered = 0
        with (
            suppress(Retry, ValueError, RunCancelled),
            execution(runs[0].run_id, requeue_on=Retry) as executed,
        ):
            entered += 1
            if ending == "queued":
                raise Retry
            if ending == "failed":
                raise ValueError("broken")
            if ending == "cancelled":
                elsewhere(cancel, executed.run)
                work_on(executed)
        return f"entered {entered}"

    with fault() as disturb:
        for result in every_step(prepare, work, disturb):
            assert result == "entered 1"
            runs[0].refresh_from_db()
            stop_state = "acknowledged" if ending == "cancelled" else ""
            assert (runs[0].status, runs[0].stop_state) == (ending, stop_state)
            assert_rows_sound()
        finish_everything()
        assert_rows_sound(everything_done=True)


@faults
def test_delivery_step(dummy: DummyBackend, settings: Any, fault: Any) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{book.__module__}.{book.__name__}"]
    runs: list[Any] = []

    def prepare() -> None:
        empty_tables()
        dummy.clear()
        runs[:] = [make_run("running"), make_run("queued")]
        cancel_runs(ids(runs), requested_by="tests")

    with fault() as disturb:
        for _ in every_step(prepare, lambda: bool(deliver_due()), disturb):
            assert_rows_sound()
            finish_everything()
            assert_rows_sound(everything_done=True)
            assert {request.run_id for request, _ in dummy.stopped} == set(ids(runs))
            assert sorted(booked()) == sorted(ids(runs))


@faults
def test_dispatch(dummy: DummyBackend, fault: Any) -> None:
    """A run that is queued gets to its executor, also if whoever has queued it does not know."""
    runs: list[Any] = []

    def prepare() -> None:
        empty_tables()
        dummy.clear()
        runs[:] = [make_run("created", external_id="")]

    with fault() as disturb:
        for result in every_step(prepare, lambda: dispatch(runs[0], "dummy"), disturb):
            runs[0].refresh_from_db()
            if runs[0].status == "created":
                assert isinstance(result, Exception)
                assert dummy.dispatched == []
                continue
            get_run_model()._base_manager.filter(dispatch_due_at__isnull=False).update(
                dispatch_due_at=runs[0].created_at
            )
            deliver_due()
            assert set(dummy.dispatched) == {runs[0].external_id}
            assert_rows_sound()
