"""Lateness: whether something has been due for minutes that a delivery worker does in seconds."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

from django.db.models import Max, Min, Q, QuerySet

from django_run_cancel.cancellation.chunks import MAX_CANCELLATIONS
from django_run_cancel.conf import settings
from django_run_cancel.db.clock import DatabaseNow, database_now
from django_run_cancel.db.trees import read_distinct
from django_run_cancel.delivery.outbox import DELIVERY, HANDLING, Queue, database, items
from django_run_cancel.models import CancellationChunk, run_rows
from django_run_cancel.states import ChunkState, Delivery, StopState

LATE_AFTER = timedelta(minutes=2)
"""Something is late when it has been due for longer. Cron may call the worker once a minute."""

OLDEST_RUNS = 1_000
"""Runs that are stopping, of which those are looked for that should be presumed stopped."""


class Overdue(Enum):
    """What a delivery worker should have done."""

    DELIVERY = "delivery"
    BULK_CANCELLATION = "bulk cancellation"
    PRESUMPTION = "presumption"


class Lateness(NamedTuple):
    """Time since the oldest delivery, chunk or presumption that is late was due.

    Attributes:
        overdue: Whether an executor is to be told or a handler called, a bulk cancellation to be
            advanced, or a run to be presumed stopped.
        duration: For how long.
    """

    overdue: Overdue
    duration: timedelta


def find_lateness() -> Lateness | None:
    """Return how late the worker is with the first kind of thing that is late; None if none is.

    A few statements, each of which reads a few rows by an index however many there are.
    """
    now = None
    for overdue, oldest_due in FINDERS.items():
        if (first := oldest_due()) is None:
            continue
        now = now or database_now(database())
        if now - first > LATE_AFTER:
            return Lateness(overdue, now - first)
    return None


def _oldest_due_item() -> datetime | None:
    # By backend, as the index has it: the first row of each is the one that is due the longest.
    queues = [_late(DELIVERY, backend=alias) for alias in settings.BACKENDS]
    if settings.HANDLERS:
        queues.append(_late(HANDLING))
    times = [moment for queue in queues for moment in queue[:1]]
    # A worker that is at others of many items is not down.
    if not times or items().filter(claimed_until__gt=DatabaseNow()).exists():
        return None
    return min(times)


def _late(queue: Queue, **lookups: str) -> QuerySet[Any, datetime]:
    before = DatabaseNow() - LATE_AFTER
    unclaimed = Q(**{queue.claimed_by: None}) | Q(**{f"{queue.claimed_until}__lte": before})
    pending = items().filter(unclaimed, **{queue.state: Delivery.PENDING}, **lookups)
    due = pending.filter(**{f"{queue.due}__lte": before}).order_by(queue.due)
    return due.values_list(queue.due, flat=True)


def _longest_unadvanced_chunk() -> datetime | None:
    """Return when the bulk cancellation was advanced of which it is longest ago."""
    chunks = CancellationChunk.objects.using(database())
    before = DatabaseNow() - LATE_AFTER
    due = chunks.filter(
        Q(next_attempt_at=None) | Q(next_attempt_at__lte=before), state=ChunkState.PENDING
    )
    # Those that workers advance in turn: others wait for them.
    pks = read_distinct(due, "cancellation_id", MAX_CANCELLATIONS)
    last = (
        chunks.filter(cancellation__in=pks).values("cancellation").annotate(last=Max("advanced_at"))
    )
    return min((row["last"] for row in last), default=None)


def _oldest_due_presumption() -> datetime | None:
    stopping = run_rows(stop_state=StopState.STOPPING).order_by("created_at")[:OLDEST_RUNS]
    first: datetime | None = stopping.aggregate(first=Min("finished_at"))["first"]
    return first and first + timedelta(seconds=settings.PRESUME_SECONDS)


FINDERS = {
    Overdue.DELIVERY: _oldest_due_item,
    Overdue.BULK_CANCELLATION: _longest_unadvanced_chunk,
    Overdue.PRESUMPTION: _oldest_due_presumption,
}
