"""Executions that are started inside of a transaction, which hides from others that they own it."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction

from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.execution import execution, watcher
from django_run_cancel.execution.executions import Execution
from django_run_cancel.models import run_rows
from django_run_cancel.states import RunStatus
from tests.execution.helpers import (
    cancel,
    elsewhere,
    fresh,
    kill_other_sessions,
    wait_until,
    work_on,
)
from tests.helpers import IS_SQLITE, make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


def wait_for_looks(executed: Execution) -> None:
    """Wait until the watcher has looked three times; checkpoints may raise meanwhile."""
    for _ in range(3):
        due = watcher.current.overdue_at
        wait_until(lambda due=due: executed.checkpoint() or watcher.current.overdue_at > due)  # type: ignore[misc]


def taken_over(run: Any) -> None:
    run_rows(pk=run.pk).update(status=RunStatus.RUNNING, execution_id=uuid4())


class TestStartedInATransaction:
    def test_goes_on(self) -> None:
        run = make_run()
        with transaction.atomic(), execution(run.run_id) as executed:
            wait_for_looks(executed)
            assert elsewhere(statuses, run) == [RunStatus.QUEUED]
        assert statuses(run) == [RunStatus.COMPLETED]

    def test_of_a_run_that_is_created_in_it__not_said_to_be_missing(self, caplog: Any) -> None:
        with transaction.atomic():
            run = make_run()
            with execution(run.run_id) as executed:
                wait_for_looks(executed)
        assert statuses(run) == [RunStatus.COMPLETED]
        assert caplog.messages == []

    def test_inside_of_a_savepoint_that_is_released(self) -> None:
        run = make_run()
        with transaction.atomic(), ExitStack() as stack:
            with transaction.atomic():
                executed = stack.enter_context(execution(run.run_id))
            wait_for_looks(executed)
        assert statuses(run) == [RunStatus.COMPLETED]

    def test_without_atomic(self) -> None:
        run = make_run()
        transaction.set_autocommit(False)
        try:
            with execution(run.run_id) as executed:
                wait_for_looks(executed)
            transaction.commit()
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)
        assert statuses(run) == [RunStatus.COMPLETED]

    def test_over_a_run_that_is_running(self) -> None:
        run = make_run(RunStatus.RUNNING, execution_id=uuid4())
        with transaction.atomic(), execution(run.run_id, take_over=True) as executed:
            wait_for_looks(executed)
        assert statuses(run) == [RunStatus.COMPLETED]

    @pytest.mark.parametrize(
        ("event", "error"), [(cancel, RunCancelled), (taken_over, RunInProgress)]
    )
    def test_once_it_is_committed(self, event: Any, error: Any) -> None:
        run = make_run()
        with pytest.raises(error), ExitStack() as stack:
            with transaction.atomic():
                executed = stack.enter_context(execution(run.run_id))
                wait_for_looks(executed)
            wait_for_looks(executed)
            elsewhere(event, run)
            work_on(executed)

    def test_once_it_is_rolled_back(self) -> None:
        run = make_run()
        with pytest.raises(RunInProgress), ExitStack() as stack:
            with transaction.atomic():
                executed = stack.enter_context(execution(run.run_id))
                transaction.set_rollback(True)
            work_on(executed)
        assert statuses(run) == [RunStatus.QUEUED]

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite has no connection that could die")
    @pytest.mark.parametrize(
        ("event", "error"), [(cancel, RunCancelled), (taken_over, RunInProgress)]
    )
    def test_undone_by_the_server(self, event: Any, error: Any) -> None:
        """As with a timeout for idle transactions: the code has not noticed."""
        run = make_run()
        with pytest.raises(error), transaction.atomic(), execution(run.run_id) as executed:
            wait_for_looks(executed)
            elsewhere(kill_other_sessions)
            elsewhere(event, run)
            work_on(executed)
        assert fresh(run).status in {RunStatus.CANCELLED, RunStatus.RUNNING}
