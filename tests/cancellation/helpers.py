"""What the tests of cancellations share: requests, and what reads their results and records."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from django_run_cancel.cancellation import (
    CancelResult,
    advance_bulk_cancellations,
    cancel_runs,
    progress_of,
    start_bulk_cancellation,
)
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import Delivery
from django_run_cancel.testing import DummyBackend

RUN = get_run_model()


def cancel(*run_ids: str, **kwargs: Any) -> CancelResult:
    return cancel_runs(run_ids, **{"requested_by": "operator", **kwargs})


def outcomes(result: CancelResult) -> dict[str, str]:
    return {item.run_id: item.outcome for item in result.items}


def force(*run_ids: str, **options: Any) -> CancelResult:
    return cancel_runs(run_ids, requested_by="chief", force=True, **options)


def ask_nicely(*run_ids: str) -> CancelResult:
    return cancel_runs(run_ids, requested_by="tests")


def forces(dummy: DummyBackend) -> list[bool]:
    return [by_force for _, by_force in dummy.stopped]


def is_due(item: CancellationItem) -> bool:
    due = item.next_attempt_at
    return item.delivery == Delivery.PENDING and due is not None and due <= timezone.now()


def start(**kwargs: Any) -> Cancellation:
    """Start a bulk cancellation, of all runs by default."""
    runs = kwargs.pop("runs", None)
    runs = RUN._base_manager.all() if runs is None else runs
    return start_bulk_cancellation(runs, requested_by="tests", **kwargs).cancellation


def finish(record: Cancellation) -> Cancellation:
    """Advance all bulk cancellations to their end."""
    while advance_bulk_cancellations(10):
        pass
    record.refresh_from_db()
    return record


def counts(record: Cancellation) -> tuple[int, int, int, int, int]:
    """Return how many runs a bulk cancellation has: total, cancelled, already, failed, cascaded."""
    progress = progress_of([record])[record.pk]
    return (
        progress.total_count,
        progress.cancelled_count,
        progress.already_count,
        progress.failed_count,
        progress.cascaded_count,
    )
