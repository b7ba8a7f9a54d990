"""What an execution concludes from a row of its run, wherever the values in it come from."""

from __future__ import annotations

from uuid import UUID

import pytest

from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution.ownership import Ownership, RunRow
from django_run_cancel.models import get_run_model
from django_run_cancel.states import TERMINAL, RunStatus

OURS = UUID(int=2**64)
OTHERS = [UUID(int=1), UUID(int=2**127)]
"""Ids of other executions: one that is smaller, and one that is greater."""


def held(status: str = RunStatus.RUNNING) -> Ownership:
    """Return an execution that owns its run, whose instance has a status."""
    ownership = Ownership("tsk_1", ())
    ownership.execution_id = OURS
    ownership._run = get_run_model()(run_id="tsk_1", status=status)
    return ownership


def row(status: str = RunStatus.RUNNING, execution_id: UUID | None = OURS) -> RunRow:
    """Return a row as a database does: with new objects, and strings that are no statuses."""
    copy = None if execution_id is None else UUID(str(execution_id))
    return RunRow(1, "".join(list(status)), copy, None)


BEFORE = row(RunStatus.RUNNING, UUID(int=2**63))


class TestAfterTheStart:
    @pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.QUEUED, RunStatus.PAUSED])
    def test_ours(self, status: str) -> None:
        assert held().error_for(row(status)) is None

    @pytest.mark.parametrize("owner", [*OTHERS, None])
    def test_of_another(self, owner: UUID | None) -> None:
        make_error = held().error_for(row(execution_id=owner))
        assert make_error is not None
        assert isinstance(make_error(), RunInProgress)

    def test_cancelled(self) -> None:
        make_error = held().error_for(row(RunStatus.CANCELLED))
        assert make_error is not None
        assert isinstance(make_error(), RunCancelled)

    @pytest.mark.parametrize("ours", [RunStatus.RUNNING, *sorted(TERMINAL)])
    @pytest.mark.parametrize("status", sorted(TERMINAL - {RunStatus.CANCELLED}))
    def test_ended__by_others_if_the_code_does_not_know(self, status: str, ours: str) -> None:
        ownership = held(ours)
        assert ownership.error_for(row(status)) is None
        make_error = ownership.error_for(row(status))
        assert (make_error is None) is (status == ours)
        assert make_error is None or isinstance(make_error(), TransitionNotAllowed)


class TestBeforeTheStart:
    """While the start may be uncommitted, the row is the one from before."""

    def test_unchanged(self) -> None:
        ownership = held()
        for _ in range(2):
            found = row(BEFORE.status, BEFORE.execution_id)
            assert ownership.error_for(found, is_start_hidden=True) is None

    @pytest.mark.parametrize(
        "changed",
        [
            *(row(RunStatus.RUNNING, owner) for owner in OTHERS),
            *(row(status, BEFORE.execution_id) for status in sorted(TERMINAL)),
        ],
    )
    def test_changed_by_others__undone(self, changed: RunRow) -> None:
        ownership = held()
        assert ownership.error_for(BEFORE, is_start_hidden=True) is None
        make_error = ownership.error_for(changed, is_start_hidden=True)
        assert make_error is not None
        kind = RunCancelled if changed.status == RunStatus.CANCELLED else RunInProgress
        assert isinstance(make_error(), kind)
