"""Cancelling runs: the functions that endpoints, admin, commands and host code all call."""

from __future__ import annotations

from django_run_cancel.cancellation.bulk import (
    BulkCancellation,
    Preview,
    abort_bulk_cancellation,
    preview_bulk_cancellation,
    retry_bulk_cancellation,
    start_bulk_cancellation,
)
from django_run_cancel.cancellation.chunks import advance_bulk_cancellations
from django_run_cancel.cancellation.decision import Item
from django_run_cancel.cancellation.evidence import record_stopped, with_evidence
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.progress import Progress, progress_of
from django_run_cancel.cancellation.results import CancelResult
from django_run_cancel.cancellation.service import cancel_runs

__all__ = [
    "BulkCancellation",
    "CancelResult",
    "Item",
    "Origin",
    "Preview",
    "Progress",
    "abort_bulk_cancellation",
    "advance_bulk_cancellations",
    "cancel_runs",
    "preview_bulk_cancellation",
    "progress_of",
    "record_stopped",
    "retry_bulk_cancellation",
    "start_bulk_cancellation",
    "with_evidence",
]
