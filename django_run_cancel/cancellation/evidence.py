"""Evidence: records and reads the ``stop_state``, which says how the work of a run ended."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.db import transaction

from django_run_cancel.db import locks
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.models import CancellationItem, get_run_model, run_rows
from django_run_cancel.signals import run_stopped
from django_run_cancel.states import StopState

ENDS = frozenset({StopState.ACKNOWLEDGED, StopState.KILLED, StopState.PRESUMED})
"""Final stop states, which may replace ``stopping``."""


def record_stopped(run_ids: Iterable[str], stop_state: str, *, wait: bool = True) -> list[str]:
    """Set the final stop state of cancelled runs that are still ``stopping``.

    Each run is updated by one UPDATE with a filter on ``stopping``. Pass several ids only outside
    of a transaction, as their rows are not locked in the order that avoids deadlocks with
    cancellations. The signal ``run_stopped`` is sent after the commit.

    Args:
        run_ids: Public ids.
        stop_state: ``acknowledged``, ``killed`` or ``presumed``.
        wait: Whether to wait for locked rows. If False, rows that are locked or that the database
            refuses to write are skipped.

    Returns:
        The ids of the updated runs.

    Raises:
        ValueError: ``stop_state`` is not one of the three.
    """
    if stop_state not in ENDS:
        raise ValueError(f"stop_state must be one of {', '.join(sorted(ENDS))}.")
    rows = run_rows()
    is_stopping = is_one_of("stop_state", [StopState.STOPPING])
    rows_to_update = rows.filter(is_stopping, run_id__in=list(run_ids))
    recorded = []
    for pk, run_id, cancellation_id in list(
        rows_to_update.values_list("pk", "run_id", "cancellation__cancellation_id")
    ):
        values = {"stop_state": str(StopState(stop_state)), "stopped_at": DatabaseNow()}
        row = rows.filter(is_stopping, pk=pk)
        written: Any = row.update(**values) if wait else locks.update_unlocked(row, **values)
        if written:
            recorded.append(run_id)
            send = partial(
                run_stopped.send_robust,
                sender=get_run_model(),
                run_id=run_id,
                cancellation_id=cancellation_id,
                stop_state=values["stop_state"],
            )
            transaction.on_commit(send, using=rows.db)
    return recorded


def with_evidence(items: list[CancellationItem]) -> list[CancellationItem]:
    """Set the attributes ``stop_state`` and ``stopped_at`` of each item to those of its run.

    Makes one query. They are blank and None if the run was not found or has been deleted.
    """
    runs = get_run_model()._base_manager.filter(run_id__in=[item.run_id for item in items])
    rows = runs.values_list("run_id", "stop_state", "stopped_at")
    evidence = {run_id: (state, at) for run_id, state, at in rows}
    for item in items:
        state_and_time = evidence.get(item.run_id) if item.previous_status else None
        item.stop_state, item.stopped_at = state_and_time or ("", None)  # type: ignore[attr-defined]
    return items
