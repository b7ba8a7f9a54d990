"""Evidence: writes and reads the ``stop_state``, which says how the work of a run has ended."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.db import transaction

from django_run_cancel.db import locks
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.models import CancellationItem, get_run_model, run_rows
from django_run_cancel.signals import run_stopped
from django_run_cancel.states import StopState

ENDS = frozenset({StopState.ACKNOWLEDGED, StopState.KILLED, StopState.PRESUMED})
"""What ``stopping`` may become. Nothing comes after."""


def record_stopped(run_ids: Iterable[str], stop_state: str, *, wait: bool = True) -> list[str]:
    """Say of cancelled runs that are still ``stopping`` how they have ended.

    One compare-and-set statement for each. Name several only outside a transaction: their rows
    are not locked in the order that cancellations need. ``run_stopped`` is sent after the commit.

    Args:
        run_ids: Public ids.
        stop_state: ``acknowledged``, ``killed`` or ``presumed``.
        wait: For rows that somebody has locked; otherwise they are left as they are, and so are
            those that the database refuses to write.

    Returns:
        The ids of the runs of which this was not known before.

    Raises:
        ValueError: ``stop_state`` is something else.
    """
    if stop_state not in ENDS:
        raise ValueError(f"stop_state must be one of {', '.join(sorted(ENDS))}.")
    rows = run_rows()
    stopping = rows.filter(stop_state=StopState.STOPPING)
    found = stopping.filter(run_id__in=list(run_ids))
    recorded = []
    for pk, run_id, cancellation_id in list(
        found.values_list("pk", "run_id", "cancellation__cancellation_id")
    ):
        values = {"stop_state": str(StopState(stop_state)), "stopped_at": DatabaseNow()}
        row = stopping.filter(pk=pk)
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
    """Add to each item ``stop_state`` and ``stopped_at`` of its run, as far as they are known.

    One statement; blank and None where the run was not found or is gone.
    """
    runs = get_run_model()._base_manager.filter(run_id__in=[item.run_id for item in items])
    known = runs.values_list("run_id", "stop_state", "stopped_at")
    evidence = {run_id: (state, at) for run_id, state, at in known}
    for item in items:
        found = evidence.get(item.run_id) if item.previous_status else None
        item.stop_state, item.stopped_at = found or ("", None)  # type: ignore[attr-defined]
    return items
