"""How an execution holds its run: every statement asks whether it still does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from django_run_cancel.evidence import record_stopped
from django_run_cancel.exceptions import (
    RunCancelled,
    RunInProgress,
    TransitionNotAllowed,
    describe,
)
from django_run_cancel.models import AbstractRun, get_run_model, run_rows
from django_run_cancel.states import HANDED_BACK, TERMINAL, WAITING, RunStatus, StopState
from django_run_cancel.watcher import Row

Requeue = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]

MAX_REASON_LENGTH = 10_000

logger = logging.getLogger(__name__)


class Holding:
    """The run as one execution holds it, from its start to its end.

    Attributes:
        run: The run, once it has been started.
        execution_id: What the row has while it is held.
    """

    run: AbstractRun
    execution_id: UUID | None = None

    def __init__(self, run_id: str, take_over: bool | float, requeue_on: Requeue) -> None:
        self.run_id = run_id
        self._take_over = take_over
        self._requeue_on = requeue_on
        self._ended_as = ""

    def start(self, execution_id: UUID) -> None:
        """Start the run, unless that may not be.

        After the statement that starts it there is nothing left that could fail. It may be
        repeated with the same id, when its answer was lost.

        Raises:
            RunCancelled: The run has been cancelled.
            RunInProgress: It is running.
            TransitionNotAllowed: It has ended in another way, or does not exist.
        """
        self.execution_id, now = execution_id, timezone.now()
        rows = run_rows(run_id=self.run_id)
        manager = get_run_model()._base_manager.using(rows.db)
        run: AbstractRun | None = manager.filter(run_id=self.run_id).first()
        if run is None:
            raise TransitionNotAllowed(self.run_id, None, RunStatus.RUNNING)
        startable = Q(status__in=[*WAITING, RunStatus.PAUSED])
        # Ours already: the answer to an attempt was lost.
        startable |= Q(status=RunStatus.RUNNING, execution_id=execution_id)
        if self._take_over is not False:
            running = Q(status=RunStatus.RUNNING)
            if self._take_over is not True:
                running &= Q(heartbeat_at__lt=now - timedelta(seconds=self._take_over))
            startable |= running
        values = {
            "status": RunStatus.RUNNING,
            "heartbeat_at": now,
            # Also tells an execution that had the run that it no longer has it.
            "execution_id": execution_id,
        }
        self.run, run.held_as = run, execution_id
        if not rows.filter(startable).update(**values, started_at=Coalesce("started_at", now)):
            raise self.refusal()
        _note(run, **values, started_at=run.started_at or now)

    def refusal(self) -> Exception:
        """Return why this execution does not hold the run, or may not start it."""
        row = run_rows(run_id=self.run_id).values_list("status", "stop_state", "execution_id")
        status, stop_state, holder = row.first() or [None] * 3
        if status == RunStatus.RUNNING:
            return RunInProgress(self.run_id)
        if status != RunStatus.CANCELLED:
            return TransitionNotAllowed(self.run_id, status, RunStatus.RUNNING)
        if stop_state == StopState.STOPPING and holder in {HANDED_BACK, self.execution_id}:
            # Cancelled while it waited: whoever held it before has left. Or the answer to our own
            # start was lost, and no work has been done.
            record_stopped([self.run_id], StopState.ACKNOWLEDGED)
        return RunCancelled(self.run_id)

    def finish(self, error: BaseException | None) -> Any:
        """Write how the code ended, unless the run has been ended already.

        Returns:
            What the database holds, a ``Row``, if the run has been cancelled; or None.
        """
        if self.execution_id is None:
            return None  # interrupted before it was started
        if error is not None and self._is_tried_again(error):
            return self.hand_back()
        values: dict[str, Any] = {"status": RunStatus.COMPLETED, "finished_at": timezone.now()}
        if error is not None:
            values |= {
                "status": RunStatus.FAILED,
                "failure_reason": describe(error, MAX_REASON_LENGTH),
            }
        return self._leave(**values)

    def hand_back(self) -> Any:
        """Leave the run queued for another try, unless it has been ended already.

        Returns:
            As ``finish()``.
        """
        return self._leave(
            status=RunStatus.QUEUED, queued_at=timezone.now(), execution_id=HANDED_BACK
        )

    def take_back(self) -> Any:
        """Hold the run again that has just been handed back, unless somebody has it by now.

        Returns:
            As ``finish()``.
        """
        values = {"status": RunStatus.RUNNING, "execution_id": self.execution_id}
        rows = run_rows(run_id=self.run_id, execution_id=HANDED_BACK)
        if rows.filter(status=RunStatus.QUEUED).update(**values):
            _note(self.run, **values, held_as=self.execution_id)
        cancelled = rows.filter(status=RunStatus.CANCELLED)
        return cancelled.values_list(*Row._fields, named=True).first()

    def _leave(self, **values: Any) -> Any:
        rows = run_rows(run_id=self.run_id, execution_id=self.execution_id)
        if rows.filter(status=RunStatus.RUNNING).update(**values):
            _note(self.run, **values, held_as=None)
            return None
        # Queued or paused while the code was at work: it has handed it back now.
        if rows.filter(status__in=[*WAITING, RunStatus.PAUSED]).update(execution_id=HANDED_BACK):
            _note(self.run, execution_id=HANDED_BACK, held_as=None)
            return None
        cancelled = rows.filter(status=RunStatus.CANCELLED)
        return cancelled.values_list(*Row._fields, named=True).first()

    def _is_tried_again(self, error: BaseException) -> bool:
        if isinstance(self._requeue_on, type | tuple):
            return isinstance(error, self._requeue_on)
        try:
            return self._requeue_on(error)
        except Exception:
            logger.exception("requeue_on of run %s is broken: the run has failed.", self.run_id)
            return False

    def order(self, row: Any) -> Callable[[], Exception] | None:
        """Return what to raise in the running code, now that the database holds this ``Row``."""
        if row.execution_id != self.execution_id:
            return partial(RunInProgress, self.run_id)
        if row.status == RunStatus.CANCELLED:
            return partial(RunCancelled, self.run_id)
        if row.status in TERMINAL and row.status != self.run.status:
            # Not at first sight: it may be the code itself that is about to note it in ``run``.
            before, self._ended_as = self._ended_as, row.status
            if before == row.status:
                return partial(TransitionNotAllowed, self.run_id, row.status, RunStatus.RUNNING)
        return None


def _note(run: AbstractRun, **values: Any) -> None:
    for name, value in values.items():
        setattr(run, name, value)
