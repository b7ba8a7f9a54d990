"""Cancels runs that were created below a run after, or while, that run was being cancelled."""

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
    """Cancel a run if one of its ancestors has been cancelled while the run was being created.

    Raises:
        RunCancelled: The run has been cancelled for this reason.
    """
    if run._meta.get_field("parent").value_from_object(run) is None:
        return
    rows = run_rows()
    with transaction.atomic(using=rows.db):
        locked_runs = lock_ancestors(rows.model, run.pk, rows.db)
    if not any(each.status == RunStatus.CANCELLED for each in locked_runs if each.pk != run.pk):
        return
    above = rows.filter(pk__in=[each.pk for each in locked_runs], cancellation__isnull=False)
    nearest = above.select_related("cancellation").order_by("-finished_at").first()
    _cancel_below(nearest, [run.run_id])
    raise RunCancelled(run.run_id)


def stop_waiting_children(execution: Execution) -> None:
    """Cancel runs of tasks that a run published after its cancellation, before its code stopped.

    Otherwise they would be refused only when they start, perhaps much later. Errors are logged.

    Args:
        execution: The execution of the cancelled run, after its block.
    """
    try:
        rows = run_rows(parent=execution.run.pk, status__in=WAITING)
        if children := list(rows.values_list("run_id", flat=True)):
            record = run_rows(pk=execution.run.pk).select_related("cancellation").first()
            _cancel_below(record, children)
    except Exception:
        logger.exception(
            "The tasks that run %s has published were not cancelled.", printable(execution.run_id)
        )


def _cancel_below(parent: AbstractRun | None, run_ids: list[str]) -> None:
    """Cancel runs with the requester and the reason of the cancellation of a run above them."""
    record = parent and parent.cancellation
    # The Cancellation may have been deleted.
    requested_by, reason = (record.requested_by, record.reason) if record else ("cascade", "")
    cancel_runs(run_ids, requested_by=requested_by, reason=reason)
