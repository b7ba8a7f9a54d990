"""Handing a run back to its executor from within the block, and taking it back."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from django.db import (
    transaction,
)

from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import execution
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import (
    cancel,
    elsewhere,
    fresh,
    work_on,
)
from tests.helpers import make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestHandingBack:
    """Before the executor is told to try again, from within the block."""

    def test_the_next_try_may_come_at_once(self) -> None:
        run = make_run()
        with suppress(OSError), execution(run.run_id, requeue_on=OSError) as first:
            assert first.hand_back()
            with execution(run.run_id) as second:
                time.sleep(0.1)
                assert not first.cancel_requested
                assert not second.cancel_requested
            raise OSError
        assert fresh(run).status == RunStatus.COMPLETED

    def test_taken_back(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            executed.hand_back()
            assert fresh(run).status == RunStatus.QUEUED
            executed.take_back()
            assert fresh(run).status == executed.run.status == RunStatus.RUNNING
            elsewhere(cancel, run)
            with pytest.raises(RunCancelled):
                work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_cancelled_before_it_is_taken_back(self) -> None:
        """The code is still in its block: it tidies up, and only then that is recorded."""
        run, called = make_run(), []
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            executed.on_cancel(lambda: called.append(fresh(run).stop_state))
            executed.hand_back()
            cancel(run)
            try:
                executed.take_back()
            finally:
                assert fresh(run).stop_state == StopState.STOPPING
        assert called == [StopState.STOPPING]
        assert executed.cancelled
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_cancelled_before_it_is_handed_back(self) -> None:
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            cancel(run)
            executed.hand_back()
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_taken_by_another_meanwhile(self) -> None:
        run = make_run()
        with execution(run.run_id) as first:
            first.hand_back()
            with execution(run.run_id) as second:
                first.take_back()
                with pytest.raises(RunInProgress):
                    work_on(first)
                assert not second.cancel_requested
            assert fresh(run).status == RunStatus.COMPLETED

    def test_taken_over_before_it_is_handed_back(self) -> None:
        """Nobody is to try again what another is at."""
        run = make_run()
        with execution(run.run_id) as first, execution(run.run_id, take_over=True):
            with pytest.raises(RunInProgress):
                first.hand_back()
            assert fresh(run).status == RunStatus.RUNNING
        assert fresh(run).status == RunStatus.COMPLETED

    def test_ended_before_it_is_handed_back(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            executed.run.mark_terminated("No licence")
            with pytest.raises(TransitionNotAllowed):
                executed.hand_back()
        assert fresh(run).status == RunStatus.TERMINATED

    def test_in_a_transaction__left_to_the_end_of_the_block(self) -> None:
        run = make_run()
        with (
            suppress(OSError),
            execution(run.run_id, requeue_on=OSError) as executed,
            transaction.atomic(),
        ):
            assert not executed.hand_back()
            raise OSError
        assert fresh(run).status == RunStatus.QUEUED
