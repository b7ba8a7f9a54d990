"""Runs that are queued, paused or dispatched from outside while their code is at work."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import pytest

from django_run_cancel.backends import StopOutcome, get_backend
from django_run_cancel.delivery import deliver_due, dispatch
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import execution
from django_run_cancel.models import AbstractRun
from django_run_cancel.states import HANDED_BACK, RunStatus, StopState
from django_run_cancel.testing import DummyBackend
from tests.execution.helpers import (
    cancel,
    fresh,
    work_on,
)
from tests.helpers import make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


def dispatch_again(run: Any) -> None:
    dispatch(run, "dummy")


class TestMovedFromOutside:
    """While the code is at work, somebody queues, pauses or dispatches its run."""

    MOVES: ClassVar[list[Callable[[Any], None]]] = [
        AbstractRun.mark_queued,
        AbstractRun.mark_paused,
        dispatch_again,
    ]

    @pytest.mark.parametrize("move", MOVES)
    def test_started_again__the_first_one_loses_it(self, move: Callable[[Any], None]) -> None:
        run = make_run()
        with pytest.raises(RunInProgress), execution(run.run_id) as first:
            move(fresh(run))
            with execution(run.run_id) as second:
                with pytest.raises(RunInProgress):
                    work_on(first)
                first._finish(None)
                assert fresh(run).status == RunStatus.RUNNING
                assert not second.cancel_requested
            assert fresh(run).status == RunStatus.COMPLETED
            first.checkpoint()
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.parametrize("move", MOVES)
    def test_cancelled__only_the_code_at_work_acknowledges(
        self, move: Callable[[Any], None]
    ) -> None:
        """Not the job that is refused meanwhile."""
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            move(fresh(run))
            cancel(run)
            with pytest.raises(RunCancelled), execution(run.run_id):
                pytest.fail("It came back.")
            assert fresh(run).stop_state == StopState.STOPPING
            work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.parametrize("move", MOVES)
    def test_cancelled_after_the_code_has_left(self, move: Callable[[Any], None]) -> None:
        run = make_run()
        with execution(run.run_id):
            move(fresh(run))
        assert fresh(run).execution_id == HANDED_BACK
        cancel(run)
        with pytest.raises(RunCancelled), execution(run.run_id):
            pytest.fail("It came back.")
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.parametrize("handed_back", [True, False])
    def test_cancelled__what_no_execution_has_held_is_not_acknowledged(
        self, handed_back: bool
    ) -> None:
        """By a job that is refused: code that marks its run itself may still be at work."""
        run = make_run()
        if handed_back:
            with execution(run.run_id):
                fresh(run).mark_paused()
        fresh(run).mark_running()
        assert fresh(run).execution_id is None
        fresh(run).mark_queued()
        cancel(run)
        with pytest.raises(RunCancelled), execution(run.run_id):
            pytest.fail("It came back.")
        assert fresh(run).stop_state == StopState.STOPPING

    def test_who_has_lost_it_cannot_move_it(self) -> None:
        """Not even with the instance that it was given."""
        run = make_run()
        with execution(run.run_id) as first, execution(run.run_id, take_over=True) as second:
            for mark in (first.run.mark_completed, first.run.mark_failed, first.run.mark_paused):
                with pytest.raises(TransitionNotAllowed, match="Another execution holds it"):
                    mark()
            assert fresh(run).status == RunStatus.RUNNING
            second.run.mark_paused()
            second.run.mark_running()
        assert fresh(run).status == RunStatus.COMPLETED

    def test_who_has_handed_it_back_can_move_it(self) -> None:
        """As when its tries are used up."""
        for requeue_on in ((OSError,), ()):
            run = make_run()
            with suppress(OSError), execution(run.run_id, requeue_on=requeue_on) as executed:
                if not requeue_on:
                    executed.run.mark_queued()
                raise OSError
            executed.run.mark_failed("no try left")
            assert fresh(run).failure_reason == "no try left"

    @pytest.mark.parametrize("outcome", [StopOutcome.STOPPED, StopOutcome.TOLD])
    def test_cancelled__that_its_new_job_will_not_run_is_no_evidence(
        self, outcome: StopOutcome
    ) -> None:
        backend = get_backend("dummy")
        assert isinstance(backend, DummyBackend)
        backend.clear()
        backend.outcome = outcome
        run = make_run()
        with execution(run.run_id):
            dispatch(fresh(run), "dummy")
            cancel(run)
            assert deliver_due().delivered == 1
            assert [request.running for request, _ in backend.stopped] == [True]
            assert fresh(run).stop_state == StopState.STOPPING
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
        backend.clear()

    def test_resumed_from_outside__the_code_still_has_it(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            fresh(run).mark_paused()
            fresh(run).mark_running()
            work_on(executed, 0.1)
        assert fresh(run).status == RunStatus.COMPLETED
