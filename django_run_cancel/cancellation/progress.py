"""Progress of bulk cancellations: counts, rate and estimated end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Max, Sum

from django_run_cancel.models import Cancellation, CancellationChunk
from django_run_cancel.states import CancellationState

COUNTS = ("cancelled_count", "already_count", "failed_count", "cascaded_count")


@dataclass(frozen=True)
class Progress:
    """Progress of a cancellation.

    Attributes:
        total_count: Number of requested runs.
        cancelled_count: Requested runs that are cancelled, including those cancelled before.
        already_count: Requested runs that were cancelled before.
        failed_count: Requested runs that are not cancelled.
        cascaded_count: Descendants cancelled with the requested runs.
        rate: Requested runs processed per second; None before the first.
        estimated_end: Time at which all will be processed; None unless the cancellation is running.
    """

    total_count: int
    cancelled_count: int
    already_count: int
    failed_count: int
    cascaded_count: int
    rate: float | None
    estimated_end: datetime | None

    @property
    def processed_count(self) -> int:
        """Number of requested runs that have been processed."""
        return self.cancelled_count + self.failed_count


def progress_of(records: Iterable[Cancellation]) -> dict[int, Progress]:
    """Return the progress of cancellations by primary key, with one query.

    Args:
        records: Cancellations, all from the same database.
    """
    records = list(records)
    # The counts of completed cancellations are in their own row.
    unfinished = [each for each in records if each.state != CancellationState.COMPLETED]
    sums_by_pk: dict[int, dict[str, Any]] = {}
    if unfinished:
        using = unfinished[0]._state.db
        rows = CancellationChunk.objects.using(using).filter(cancellation__in=unfinished)
        sums = {name: Sum(name) for name in COUNTS}
        for row in rows.values("cancellation_id").annotate(**sums, last=Max("advanced_at")):
            sums_by_pk[row["cancellation_id"]] = dict(row)
    return {each.pk: _progress(each, sums_by_pk.get(each.pk, {})) for each in records}


def _progress(record: Cancellation, sums: Mapping[str, Any]) -> Progress:
    counts = {name: getattr(record, name) + sums.get(name, 0) for name in COUNTS}
    processed = counts["cancelled_count"] + counts["failed_count"]
    last: datetime | None = record.finished_at or sums.get("last")
    rate = end = None
    if record.selection is not None and processed and last:
        rate = processed / max((last - record.requested_at).total_seconds(), 0.001)
        if record.state == CancellationState.RUNNING:
            remaining = record.total_count - processed
            end = last + timedelta(seconds=remaining / rate)
    return Progress(record.total_count, **counts, rate=rate, estimated_end=end)
