"""Leaving: how the end of the code is recorded, whatever comes in between."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import time
from typing import Any

import pytest

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution, watcher
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import PATIENCE, cancel, fresh
from tests.helpers import make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestLeaving:
    def test_completed(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            executed.checkpoint()
        assert fresh(run).status == executed.run.status == RunStatus.COMPLETED
        assert run.finished_at == executed.run.finished_at

    @pytest.mark.parametrize(
        "error", [ValueError("no such page"), KeyboardInterrupt("no such page")]
    )
    def test_failed(self, error: BaseException) -> None:
        run = make_run()
        with pytest.raises(type(error)), execution(run.run_id):
            raise error
        assert fresh(run).status == RunStatus.FAILED
        assert run.failure_reason == f"{type(error).__name__}: no such page"

    def test_failed_with_what_databases_cannot_store(self) -> None:
        run = make_run()
        with pytest.raises(ValueError, match="bad"), execution(run.run_id):
            raise ValueError("bad \0 \ud800" + "x" * 20_000)
        assert fresh(run).failure_reason.startswith("ValueError: bad  \\ud800xxx")

    def test_tried_again(self) -> None:
        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=(OSError,)):
            raise OSError("again")
        assert fresh(run).status == RunStatus.QUEUED
        assert run.finished_at is None
        with execution(run.run_id, requeue_on=(OSError,)):
            pass
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.parametrize("left", [1, 0])
    def test_tried_again_if_somebody_says_so(self, left: int) -> None:
        """Only the executor knows whether there is a try left."""
        run, asked = make_run(), []

        def tried_again(error: BaseException) -> bool:
            asked.append(error)
            return bool(left)

        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=tried_again):
            raise OSError("again")
        assert fresh(run).status == (RunStatus.QUEUED if left else RunStatus.FAILED)
        assert [str(error) for error in asked] == ["again"]
        other = make_run()
        with execution(other.run_id, requeue_on=tried_again):
            pass
        assert fresh(other).status == RunStatus.COMPLETED

    def test_tried_again_if_somebody_could_say_so(self, caplog: Any) -> None:
        def broken(error: BaseException) -> bool:
            raise LookupError("no current job")

        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=broken):
            raise OSError("again")
        assert fresh(run).failure_reason == "OSError: again"
        assert "no current job" in caplog.text

    def test_tried_again_after_one_exception(self) -> None:
        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=OSError):
            raise OSError("again")
        assert fresh(run).status == RunStatus.QUEUED

    def test_tried_again_but_cancelled_meanwhile(self) -> None:
        """The retry is refused, and that says that the code has ended."""
        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=(OSError,)):
            raise OSError("again")
        cancel(run)
        assert fresh(run).stop_state == StopState.STOPPING
        for _ in range(2):
            with pytest.raises(RunCancelled), execution(run.run_id):
                pytest.fail("It came back.")
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_a_redelivery_does_not_say_that_the_code_has_ended(self) -> None:
        run = make_run()
        with execution(run.run_id):
            cancel(run)
            with pytest.raises(RunCancelled), execution(run.run_id):
                pytest.fail("It started twice.")
            assert fresh(run).stop_state == StopState.STOPPING
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_cancelled_just_before_an_exception_that_means_again(self) -> None:
        run = make_run()
        with pytest.raises(OSError, match="again"), execution(run.run_id, requeue_on=(OSError,)):
            cancel(run)
            raise OSError("again")
        assert fresh(run).status == RunStatus.CANCELLED
        assert run.stop_state == StopState.ACKNOWLEDGED

    def test_cancelled_but_the_work_was_done(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        run = make_run()
        with execution(run.run_id) as executed:
            cancel(run)
        assert executed.cancelled
        assert executed.cancellation is not None
        assert fresh(run).status == RunStatus.CANCELLED
        assert run.stop_state == StopState.ACKNOWLEDGED

    def test_the_code_has_said_itself_how_it_ended(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = PATIENCE
        for mark in ("mark_failed", "mark_completed", "mark_paused", "mark_queued"):
            run = make_run()
            with execution(run.run_id) as executed:
                getattr(executed.run, mark)()
                for _ in range(3):
                    watcher.poll_now()
                executed.checkpoint()
            assert f"mark_{fresh(run).status}" == mark

    def test_deleted(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            type(run)._base_manager.all().delete()
            time.sleep(0.05)
            executed.checkpoint()
        assert not executed.cancelled
