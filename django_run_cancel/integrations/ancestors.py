"""Cancels runs below a cancelled one that its cancellation has not seen: they came later."""

from __future__ import annotations

import logging

from django.db import transaction

from django_run_cancel.cancellation.service import cancel_runs
from django_run_cancel.db.trees import lock_ancestors
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution.executions import Execution
from django_run_cancel.models import AbstractRun, run_rows
from django_run_cancel.safe_text import printable
from django_run_cancel.states import WAITING, RunStatus

logger = logging.getLogger("django_run_cancel")


def stop_with_ancestors(run: AbstractRun) -> None:
    """Cancel a run whose parent was cancelled while it was being created.

    Raises:
        RunCancelled: That was so.
    """
    if run._meta.get_field("parent").value_from_object(run) is None:
        return
    rows = run_rows()
    with transaction.atomic(using=rows.db):
        line = lock_ancestors(rows.model, run.pk, rows.db)
    if not any(each.status == RunStatus.CANCELLED for each in line if each.pk != run.pk):
        return
    above = rows.filter(pk__in=[each.pk for each in line], cancellation__isnull=False)
    nearest = above.select_related("cancellation").order_by("-finished_at").first()
    _cancel_below(nearest, [run.run_id])
    raise RunCancelled(run.run_id)


def stop_waiting_children(execution: Execution) -> None:
    """Cancel what a run has published after it was cancelled, and before its code knew.

    Its tasks would be refused when they start, which can be long after. What goes wrong is logged.

    Args:
        execution: The execution of the cancelled run, which has left.
    """
    try:
        rows = run_rows(parent=execution.run.pk, status__in=WAITING)
        if children := list(rows.values_list("run_id", flat=True)):
            record = run_rows(pk=execution.run.pk).select_related("cancellation").first()
            _cancel_below(record, children)
    except Exception:
        logger.exception(
            "What run %s has published was not cancelled.", printable(execution.run_id)
        )


def _cancel_below(parent: AbstractRun | None, run_ids: list[str]) -> None:
    """Cancel runs for the reason for which a run above them has been cancelled."""
    record = parent and parent.cancellation
    # The record may have been deleted.
    by, why = (record.requested_by, record.reason) if record else ("cascade", "")
    cancel_runs(run_ids, requested_by=by, reason=why)
