"""How far cancellations are that go on after they were asked for."""

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
    """How far a cancellation is.

    Attributes:
        total_count: Runs asked for.
        cancelled_count: Of these, runs that are cancelled now.
        already_count: Of these, runs that were cancelled before.
        failed_count: Of those asked for, runs that are not cancelled.
        cascaded_count: Descendants cancelled with them.
        rate: Runs asked for that are dealt with a second; None before the first.
        estimated_end: When all will be, at this rate; None unless the cancellation is running.
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
        """Runs asked for that have been dealt with."""
        return self.cancelled_count + self.failed_count


def progress_of(records: Iterable[Cancellation]) -> dict[int, Progress]:
    """Return how far cancellations are, by their primary keys, with one query for all.

    Args:
        records: Cancellations of one database.
    """
    records = list(records)
    # Of the others, their own counts say all.
    going = [each for each in records if each.state != CancellationState.COMPLETED]
    found: dict[int, dict[str, Any]] = {}
    if going:
        using = going[0]._state.db
        rows = CancellationChunk.objects.using(using).filter(cancellation__in=going)
        sums = {name: Sum(name) for name in COUNTS}
        for row in rows.values("cancellation_id").annotate(**sums, last=Max("advanced_at")):
            found[row["cancellation_id"]] = dict(row)
    return {each.pk: _progress(each, found.get(each.pk, {})) for each in records}


def _progress(record: Cancellation, sums: Mapping[str, Any]) -> Progress:
    counts = {name: getattr(record, name) + sums.get(name, 0) for name in COUNTS}
    processed = counts["cancelled_count"] + counts["failed_count"]
    last: datetime | None = record.finished_at or sums.get("last")
    rate = end = None
    if record.selection is not None and processed and last:
        rate = processed / max((last - record.requested_at).total_seconds(), 0.001)
        if record.state == CancellationState.RUNNING:
            left = record.total_count - processed
            end = last + timedelta(seconds=left / rate)
    return Progress(record.total_count, **counts, rate=rate, estimated_end=end)
