"""Ownership of a run by one execution: queries that start, finish and hand back the run.

Each UPDATE filters by the ``execution_id`` of the row, so that an execution whose run another
execution has taken over changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections
from django.db.models import Q
from django.db.models.functions import Coalesce

from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.db.returning import set_written, update_and_read
from django_run_cancel.db.sessions import may_hide_writes
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.models import AbstractRun, get_run_model, run_rows
from django_run_cancel.safe_text import describe_error, printable
from django_run_cancel.states import HANDED_BACK, TERMINAL, WAITING, RunStatus, StopState

Requeue = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]

MAX_FAILURE_REASON_LENGTH = 10_000

logger = logging.getLogger(__name__)


class RunRow(NamedTuple):
    """The columns of a run that determine whether its code must stop."""

    pk: Any
    status: str
    execution_id: UUID | None
    cancellation: int | None


class Ownership:
    """Starts, finishes and hands back the run of one execution.

    Attributes:
        execution_id: The ``execution_id`` of the row while this execution owns the run.
    """

    execution_id: UUID | None = None

    def __init__(self, run_id: str, requeue_on: Requeue) -> None:
        self.run_id = run_id
        self._requeue_on = requeue_on
        self._end_read_before = ""
        self._run: AbstractRun | None = None
        self._start_connection: Any = None  # while its transaction may be uncommitted
        self._row_before: RunRow | None = None

    @property
    def run(self) -> AbstractRun:
        """The run, once it has been started."""
        if self._run is None:
            raise RuntimeError("The run has not been started: enter the block first.")
        return self._run

    def start(self, execution_id: UUID, take_over: bool | float) -> None:
        """Start the run if its status allows it.

        The call can be repeated with the same id if the database's response was lost.

        Args:
            execution_id: Id of this execution.
            take_over: Whether to start a run that another execution is running; a number of seconds
                means only if it has written no heartbeat for that long.

        Raises:
            RunCancelled: The run has been cancelled.
            RunInProgress: Another execution is running the run.
            TransitionNotAllowed: The run has ended without being cancelled, or does not exist.
        """
        self.execution_id = execution_id
        startable = Q(is_one_of("status", [*WAITING, RunStatus.PAUSED]))
        is_running = Q(is_one_of("status", [RunStatus.RUNNING]))
        startable |= is_running & Q(execution_id=execution_id)  # a retry
        if take_over is True:
            startable |= is_running
        elif take_over is not False:
            is_silent = Q(heartbeat_at__lt=DatabaseNow() - timedelta(seconds=take_over))
            is_silent |= Q(heartbeat_at=None)
            startable |= is_running & is_silent
        run = update_and_read(
            get_run_model(),
            run_rows(run_id=self.run_id).filter(startable),
            status=RunStatus.RUNNING,
            started_at=Coalesce("started_at", DatabaseNow()),
            heartbeat_at=DatabaseNow(),
            execution_id=execution_id,  # the previous owner, if any, loses the run
        )
        if run is None:
            raise self.ownership_error()
        run.held_as = execution_id
        self._start_connection = connections[run_rows().db]
        self._run = run

    def ownership_error(self) -> Exception:
        """Return the error that explains why this execution does not own the run."""
        row = run_rows(run_id=self.run_id).values_list("status", "execution_id")
        status, owner = row.first() or [None] * 2
        if status == RunStatus.RUNNING:
            return RunInProgress(self.run_id)
        if status != RunStatus.CANCELLED:
            return TransitionNotAllowed(self.run_id, status, RunStatus.RUNNING)
        if owner in {HANDED_BACK, self.execution_id}:
            # No code is executing: the run was cancelled between two executions, or after our own
            # start, whose response was lost. It may have been recorded before.
            record_stopped([self.run_id], StopState.ACKNOWLEDGED)
        return RunCancelled(self.run_id)

    def finish(self, error: BaseException | None) -> Any:
        """Record how the code ended, unless the run has already ended.

        Args:
            error: The exception that the code raised, or None.

        Returns:
            The ``RunRow`` in the database if the run has been cancelled, or None.
        """
        if self.execution_id is None:
            return None  # interrupted before ``start()``
        if error is None:
            return self._release(status=RunStatus.COMPLETED, finished_at=DatabaseNow())
        if self._will_be_retried(error):
            return self.hand_back()
        reason = describe_error(error, MAX_FAILURE_REASON_LENGTH)
        return self._release(
            status=RunStatus.FAILED, finished_at=DatabaseNow(), failure_reason=reason
        )

    def hand_back(self) -> Any:
        """Set the run to ``queued`` for a retry, unless it has already ended.

        Returns:
            The ``RunRow`` in the database if the run has been cancelled, or None.
        """
        return self._release(
            status=RunStatus.QUEUED, queued_at=DatabaseNow(), execution_id=HANDED_BACK
        )

    def take_back(self) -> Any:
        """Own the run again after ``hand_back()``, unless another execution owns it by now.

        Returns:
            The ``RunRow`` in the database if the run has been cancelled, or None.
        """
        values = {"status": RunStatus.RUNNING, "execution_id": self.execution_id}
        rows = run_rows(run_id=self.run_id, execution_id=HANDED_BACK)
        if rows.filter(is_one_of("status", [RunStatus.QUEUED])).update(
            **values, heartbeat_at=DatabaseNow()
        ):
            set_written(self.run, **values, heartbeat_at=DatabaseNow())
            self.run.held_as = self.execution_id
        return _cancelled_row(rows)

    def _release(self, **values: Any) -> Any:
        rows = run_rows(run_id=self.run_id, execution_id=self.execution_id)
        if not rows.filter(is_one_of("status", [RunStatus.RUNNING])).update(**values):
            # Another process has queued or paused the run while its code was executing.
            values = {"execution_id": HANDED_BACK}
            waiting = is_one_of("status", [*WAITING, RunStatus.PAUSED])
            if not rows.filter(waiting).update(**values):
                return _cancelled_row(rows)
        if self._run is not None:  # None if start() was interrupted after its UPDATE
            set_written(self._run, **values)
            self._run.held_as = None
        return None

    def _will_be_retried(self, error: BaseException) -> bool:
        if isinstance(self._requeue_on, type | tuple):
            return isinstance(error, self._requeue_on)
        try:
            return self._requeue_on(error)
        except Exception:
            logger.exception(
                "requeue_on of run %s has raised an error: the run has failed.",
                printable(self.run_id),
            )
            return False

    def is_start_hidden(self) -> bool:
        """Tell whether ``start()`` may still be uncommitted, in a transaction of the code.

        Call it before reading the row: the transaction may commit between the two.
        """
        if self._start_connection is not None and not may_hide_writes(self._start_connection):
            self._start_connection = None
        return self._start_connection is not None

    def error_for(
        self, row: RunRow, *, is_start_hidden: bool = False
    ) -> Callable[[], Exception] | None:
        """Return a factory of the error that the running code must raise, or None.

        Args:
            row: The committed row.
            is_start_hidden: Whether the row may be from before ``start()``.
        """
        if row.execution_id != self.execution_id:
            return self._error_before_start(row) if is_start_hidden else self._taken_over
        if row.status == RunStatus.CANCELLED:
            return partial(RunCancelled, self.run_id)
        if row.status in TERMINAL and row.status != self.run.status:
            # Only when read twice: the code itself may have written the status, and be about to set
            # it on ``run``.
            before, self._end_read_before = self._end_read_before, row.status
            if before == row.status:
                return partial(TransitionNotAllowed, self.run_id, row.status, RunStatus.RUNNING)
        return None

    def _error_before_start(self, row: RunRow) -> Callable[[], Exception] | None:
        # ``start()`` has locked the row. If others could change it, it has been rolled back.
        if row.status == RunStatus.CANCELLED:
            return partial(RunCancelled, self.run_id)
        self._row_before = self._row_before or row
        return None if row == self._row_before else self._taken_over

    def _taken_over(self) -> Exception:
        return RunInProgress(self.run_id)


def _cancelled_row(rows: Any) -> Any:
    cancelled = rows.filter(status=RunStatus.CANCELLED)
    return cancelled.values_list(*RunRow._fields, named=True).first()
