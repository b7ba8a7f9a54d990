"""The outbox: items of which an executor must be told, or that the host's handlers wait for.

Items are claimed in a short transaction, which moves the time that they are due by a lease. That
time is also the token of the claim: what comes of it is recorded only if the item still has it.
"""

from __future__ import annotations

import logging
import random
import re
import traceback
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import connections, router, transaction
from django.db.models import F, Min, QuerySet
from django.utils import timezone

from django_run_cancel.conf import settings
from django_run_cancel.exceptions import describe
from django_run_cancel.models import CancellationItem, run_rows
from django_run_cancel.states import Delivery, StopState

logger = logging.getLogger("django_run_cancel")

LEASE = timedelta(seconds=60)
"""After which a claim is void: who made it has died. Far above what any backend may take."""

LONGEST_BACKOFF = 3600.0
"""Seconds between attempts that fail."""

MAX_ERROR_LENGTH = 1_000


class Queue(NamedTuple):
    """The fields of an item that make a queue of the items."""

    state: str
    attempts: str
    due: str
    error: str


DELIVERY = Queue("delivery", "attempts", "next_attempt_at", "last_error")
HANDLING = Queue("handling", "handling_attempts", "next_handling_at", "handling_error")


def retry_deliveries(items: QuerySet[CancellationItem] | None = None) -> int:
    """Try again what has failed for good: telling the executor, and handling.

    Args:
        items: Among these items; by default among all.

    Returns:
        How many items are due again.
    """
    items = CancellationItem.objects.all() if items is None else items
    items = items.using(database()).order_by()
    count = 0
    for queue in (DELIVERY, HANDLING):
        again = {queue.state: Delivery.PENDING, queue.attempts: 0, queue.due: timezone.now()}
        count += items.filter(**{queue.state: Delivery.FAILED}).update(**again)
    return count


def queue_size() -> dict[str, int]:
    """Return the figures to watch: numbers of items and runs, and an age in seconds."""
    now = timezone.now()
    items = CancellationItem.objects.using(database())
    oldest = None
    figures = {}
    for queue in (DELIVERY, HANDLING):
        pending = items.filter(**{queue.state: Delivery.PENDING})
        due = pending.filter(**{f"{queue.due}__lte": now})
        figures[f"{queue.state}_pending"] = pending.count()
        figures[f"{queue.state}_failed"] = items.filter(**{queue.state: Delivery.FAILED}).count()
        first = due.aggregate(first=Min(queue.due))["first"]
        oldest = min(filter(None, (oldest, first)), default=None)
    figures["dispatch_pending"] = run_rows(dispatch_due_at__isnull=False).count()
    figures["stopping"] = run_rows(stop_state=StopState.STOPPING).count()
    figures["oldest_due_seconds"] = int((now - oldest).total_seconds()) if oldest else 0
    return figures


def database() -> str:
    """Return the alias of the database with the outbox."""
    return router.db_for_write(CancellationItem)


def due_items(queue: Queue) -> QuerySet[CancellationItem]:
    """Return the items that are due, those first that have been for longest."""
    items = CancellationItem.objects.using(database())
    due = items.filter(**{queue.state: Delivery.PENDING, f"{queue.due}__lte": timezone.now()})
    # By nothing else: many share a time, and would be sorted for each claim.
    return due.order_by(queue.due)


def claim(queue: Queue, limit: int, **lookups: Any) -> list[CancellationItem]:
    """Claim due items, and count the attempt.

    Those of which the last attempt never came to an end, because it ended the worker, have failed.

    Args:
        queue: Which queue.
        limit: How many items at most.
        lookups: Which items.
    """
    due = due_items(queue).filter(**lookups)
    if not due.exists():
        return []  # without taking SQLite's only write lock every second
    until = timezone.now() + LEASE
    items = CancellationItem.objects.using(database())
    skip_locked = connections[database()].features.has_select_for_update_skip_locked
    with transaction.atomic(using=database()):
        claimed: list[CancellationItem] = []
        spent = True
        while spent and not claimed:
            locked = list(due.select_for_update(skip_locked=skip_locked)[:limit])
            claimed = [item for item in locked if not _is_spent(queue, item)]
            spent = len(claimed) < len(locked)
            for item in locked:
                if _is_spent(queue, item):
                    _give_up(queue, item)
        items.filter(pk__in=[item.pk for item in claimed]).update(
            **{queue.attempts: F(queue.attempts) + 1, queue.due: until}
        )
    for item in claimed:
        setattr(item, queue.attempts, getattr(item, queue.attempts) + 1)
        setattr(item, queue.due, until)
    return claimed


def _is_spent(queue: Queue, item: CancellationItem) -> bool:
    return bool(getattr(item, queue.attempts) >= settings.MAX_ATTEMPTS)


def _give_up(queue: Queue, item: CancellationItem) -> None:
    error = getattr(item, queue.error) or "The worker ended during the last attempt."
    logger.error("%s of %s has failed: %s", queue.state, item.run_id, error)
    values = {queue.state: Delivery.FAILED, queue.due: None, queue.error: error}
    CancellationItem.objects.using(database()).filter(pk=item.pk).update(**values)


def claimed(queue: Queue, item: CancellationItem) -> QuerySet[CancellationItem]:
    """Return the items of the claim that this one belongs to, as far as it still holds."""
    return CancellationItem.objects.using(database()).filter(
        **{queue.state: Delivery.PENDING, queue.due: getattr(item, queue.due)}
    )


def failure(queue: Queue, item: CancellationItem, error: BaseException) -> Mapping[str, Any]:
    """Log an attempt that failed, and return what to record."""
    attempts = getattr(item, queue.attempts)
    last = attempts >= settings.MAX_ATTEMPTS
    log = logger.error if last else logger.warning
    # With where it came from at the first attempt and the last.
    lines = traceback.format_exception(error) if last or attempts == 1 else [described(error)]
    text = redacted("".join(lines)).strip()
    log("%s of %s, attempt %d: %s", queue.state, item.run_id, attempts, text)
    return {
        queue.state: Delivery.FAILED if last else Delivery.PENDING,
        queue.due: None if last else timezone.now() + backoff(attempts, LONGEST_BACKOFF),
        queue.error: described(error),
    }


def described(error: BaseException) -> str:
    """Return an error as text that may be recorded."""
    # Cut afterwards: half a password is recognised as none.
    return redacted(describe(error, 10 * MAX_ERROR_LENGTH))[:MAX_ERROR_LENGTH]


def redacted(text: str) -> str:
    """Return a text without the names and passwords that URLs, such as of a broker, have in it."""
    return re.sub(r"(?<=://)[^/\s]*@", "…@", text)


def backoff(attempts: int, longest: float) -> timedelta:
    """Return how long to wait after so many attempts; at most ``longest`` seconds."""
    # The jitter also parts items that fail together from one that makes all of them fail.
    seconds = min(2.0 ** min(attempts, 20), longest)
    return timedelta(seconds=seconds * random.uniform(0.5, 1))  # noqa: S311
