"""Detects that no delivery worker is running, or that it lacks a backend, by work that waits."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

from django.db.models import Max, Min, Q, QuerySet

from django_run_cancel.cancellation.chunks import MAX_CANCELLATIONS
from django_run_cancel.conf import settings
from django_run_cancel.db.clock import DatabaseNow, database_now
from django_run_cancel.db.trees import read_distinct
from django_run_cancel.delivery.outbox import (
    DELIVERY,
    HANDLING,
    MAX_ALIASES,
    Queue,
    database,
    items,
)
from django_run_cancel.models import CancellationChunk, CancellationItem, run_rows
from django_run_cancel.states import ChunkState, Delivery, StopState

LATE_AFTER = timedelta(minutes=2)
"""Work is late if due for longer than this. A worker started by cron may run once a minute."""

OLDEST_RUNS = 1_000
"""Number of stopping runs, oldest first, among which an overdue presumption is looked for."""


class Overdue(Enum):
    """Kind of work that is late."""

    DELIVERY = "delivery"
    BULK_CANCELLATION = "bulk cancellation"
    PRESUMPTION = "presumption"


class Lateness(NamedTuple):
    """How late the delivery worker is.

    Attributes:
        overdue: Kind of work: a delivery to an executor or handler, a bulk cancellation, or a run
            to presume stopped.
        duration: Time since the oldest such work was due.
    """

    overdue: Overdue
    duration: timedelta


def find_lateness() -> Lateness | None:
    """Return the first kind of work that is late, or None.

    Makes a few queries, each of which reads a few rows by an index.
    """
    now = None
    for overdue, oldest_due in FINDERS.items():
        if (due_since := oldest_due()) is None:
            continue
        now = now or database_now(database())
        if now - due_since > LATE_AFTER:
            return Lateness(overdue, now - due_since)
    return None


def find_unknown_backends(limit: int | None = None) -> dict[str, int]:
    """Return the number of pending deliveries by alias that is not in ``RUN_CANCEL_BACKENDS``.

    The delivery worker cannot deliver these: somebody has renamed or removed the backend.

    Args:
        limit: Maximum number of deliveries to count for each alias; None for all.
    """
    unknown = [alias for alias in _aliases() if alias not in settings.BACKENDS]
    return {alias: _pending().filter(backend=alias)[:limit].count() for alias in unknown}


def _aliases() -> list[str]:
    """Return the aliases of backends with pending deliveries, also of those that were removed."""
    return read_distinct(_pending(), "backend", MAX_ALIASES)


def _pending() -> QuerySet[CancellationItem]:
    return items().filter(delivery=Delivery.PENDING)


def _oldest_due_item() -> datetime | None:
    # One query per backend, as the index begins with it; the first row is the oldest.
    queues = [_late(DELIVERY, backend=alias) for alias in _aliases()]
    if settings.HANDLERS:
        queues.append(_late(HANDLING))
    times = [moment for queue in queues for moment in queue[:1]]
    # A claimed item shows that a worker is running.
    if not times or items().filter(claimed_until__gt=DatabaseNow()).exists():
        return None
    return min(times)


def _late(queue: Queue, **lookups: str) -> QuerySet[Any, datetime]:
    before = DatabaseNow() - LATE_AFTER
    unclaimed = Q(**{queue.claimed_by: None}) | Q(**{f"{queue.claimed_until}__lte": before})
    pending = items().filter(unclaimed, **{queue.state: Delivery.PENDING}, **lookups)
    due = pending.filter(**{f"{queue.due}__lte": before}).order_by(queue.due)
    return due.values_list(queue.due, flat=True)


def _least_recently_advanced() -> datetime | None:
    """Return the time at which the least recently advanced bulk cancellation was advanced."""
    chunks = CancellationChunk.objects.using(database())
    before = DatabaseNow() - LATE_AFTER
    due = chunks.filter(
        Q(next_attempt_at=None) | Q(next_attempt_at__lte=before), state=ChunkState.PENDING
    )
    # Only the cancellations that workers advance now; others wait for these.
    pks = read_distinct(due, "cancellation_id", MAX_CANCELLATIONS)
    last = (
        chunks.filter(cancellation__in=pks).values("cancellation").annotate(last=Max("advanced_at"))
    )
    return min((row["last"] for row in last), default=None)


def _oldest_due_presumption() -> datetime | None:
    stopping = run_rows(stop_state=StopState.STOPPING).order_by("created_at")[:OLDEST_RUNS]
    oldest: datetime | None = stopping.aggregate(oldest=Min("finished_at"))["oldest"]
    return oldest and oldest + timedelta(seconds=settings.PRESUME_SECONDS)


FINDERS = {
    Overdue.DELIVERY: _oldest_due_item,
    Overdue.BULK_CANCELLATION: _least_recently_advanced,
    Overdue.PRESUMPTION: _oldest_due_presumption,
}
