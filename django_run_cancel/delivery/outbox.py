"""The outbox: queues of items, due for a stop request to the executor or for the host's handlers.

A worker claims items in a short transaction, with a token and an expiry time. It records results
only for items that still have its token. An expired claim is that of a worker that died; such items
are claimed one at a time, as one of them may have killed the worker.
"""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from django.db import router
from django.db.models import F, Min, QuerySet, Sum

from django_run_cancel.conf import settings
from django_run_cancel.db.batches import batches
from django_run_cancel.db.clock import DatabaseNow, database_now
from django_run_cancel.db.locks import update_unlocked
from django_run_cancel.db.trees import read_distinct
from django_run_cancel.delivery.policy import LONGEST_WAIT_AFTER_FAILURE, backoff
from django_run_cancel.delivery.rotation import Rotation
from django_run_cancel.models import CancellationChunk, CancellationItem, run_rows
from django_run_cancel.safe_text import describe_error, printable, printable_lines, redact
from django_run_cancel.states import ChunkState, Delivery, StopState

logger = logging.getLogger("django_run_cancel")

CLAIM_DURATION = timedelta(seconds=60)
"""Time until a claim expires; far longer than a backend may take."""

PAUSES_WHILE_LOCKED = (0.01, 0.05, 0.2)
"""Seconds between attempts to record results of items that are locked."""

MAX_ALIASES = 1_000
MAX_ERROR_LENGTH = 1_000
MAX_LOG_LENGTH = 20_000


class Queue(NamedTuple):
    """Names of the fields that make items a queue; an item is in two queues."""

    state: str
    attempts: str
    due: str
    claimed_by: str
    claimed_until: str
    error: str


DELIVERY = Queue(
    "delivery", "attempts", "next_attempt_at", "claimed_by", "claimed_until", "last_error"
)
HANDLING = Queue(
    *("handling", "handling_attempts", "next_handling_at"),
    *("handling_claimed_by", "handling_claimed_until", "handling_error"),
)

_rotations: dict[tuple[str, ...], Rotation] = {}


class Claim(NamedTuple):
    """Items that no other process works on until the claim expires.

    Attributes:
        queue: The queue from which the items were claimed.
        token: Value of the field ``queue.claimed_by`` of the items.
        items: The items, as read when they were claimed.
    """

    queue: Queue
    token: UUID
    items: list[CancellationItem]

    def rows(self) -> QuerySet[CancellationItem]:
        """Return the items that still have the claim's token."""
        held = {self.queue.claimed_by: self.token, self.queue.state: Delivery.PENDING}
        return items().filter(**held)

    def released(self, **values: Any) -> dict[str, Any]:
        """Return the values, and those that clear the claim."""
        return {self.queue.claimed_by: None, self.queue.claimed_until: None, **values}


def retry_deliveries(among: QuerySet[CancellationItem] | None = None) -> int:
    """Make failed items due again, both for executors and for handlers.

    Args:
        among: The items to retry; all if None.

    Returns:
        Number of retried deliveries and handlings.
    """
    among = CancellationItem.objects.all() if among is None else among
    among = among.using(database()).order_by()
    count = 0
    for queue in (DELIVERY, HANDLING):
        retried = {queue.state: Delivery.PENDING, queue.attempts: 0, queue.due: DatabaseNow()}
        failed = {queue.state: Delivery.FAILED}
        for keys in batches(among.filter(**failed), "id"):
            count += len(update_unlocked(items().filter(pk__in=keys, **failed), **retried))
    return count


def queue_size() -> dict[str, int]:
    """Return metrics by name: numbers of items and runs, and the age of the oldest due item.

    The age, ``oldest_due_seconds``, is in seconds.
    """
    now = database_now(database())
    oldest = None
    figures = {}
    for queue in (DELIVERY, HANDLING):
        pending = items().filter(**{queue.state: Delivery.PENDING})
        due = pending.filter(**{f"{queue.due}__lte": now})
        figures[f"{queue.state}_pending"] = pending.count()
        figures[f"{queue.state}_failed"] = items().filter(**{queue.state: Delivery.FAILED}).count()
        first = due.aggregate(first=Min(queue.due))["first"]
        oldest = min(filter(None, (oldest, first)), default=None)
    figures["dispatch_pending"] = run_rows(dispatch_due_at__isnull=False).count()
    figures["stopping"] = run_rows(stop_state=StopState.STOPPING).count()
    chunks = CancellationChunk.objects.using(database()).filter(state=ChunkState.PENDING)
    figures["bulk_pending"] = chunks.aggregate(left=Sum(F("size") - F("position"), default=0))[
        "left"
    ]
    figures["oldest_due_seconds"] = int((now - oldest).total_seconds()) if oldest else 0
    return figures


def database() -> str:
    """Return the alias of the database that has the items."""
    return router.db_for_write(CancellationItem)


def items() -> QuerySet[CancellationItem]:
    """Return all items, on the database for writes."""
    return CancellationItem.objects.using(database())


def aliases_with_due_items() -> list[str]:
    """Return the aliases of backends with due items, in one query."""
    pending = items().filter(delivery=Delivery.PENDING, claimed_by=None)
    due = pending.filter(next_attempt_at__lte=DatabaseNow())
    return read_distinct(due, "backend", MAX_ALIASES)


def claim_due(queue: Queue, limit: int, **lookups: str) -> Claim | None:
    """Claim due items, the oldest first, and increment their attempts.

    Args:
        queue: The queue to claim from (delivery or handling).
        limit: Maximum number of items.
        lookups: Extra filters for the items.

    Returns:
        The claim, or None if no item is due.
    """
    due = items().filter(
        **{queue.state: Delivery.PENDING, queue.claimed_by: None},
        **{f"{queue.due}__lte": DatabaseNow()},
        **lookups,
    )
    return _claim(queue, due, queue.due, limit, (queue.state, *lookups.values()))


def claim_abandoned(queue: Queue) -> Claim | None:
    """Claim one item with an expired claim and increment its attempts; None if there is none."""
    abandoned = items().filter(
        **{queue.state: Delivery.PENDING, f"{queue.claimed_until}__lte": DatabaseNow()}
    )
    rotation_key = (queue.claimed_until,)
    return _claim(queue, abandoned, queue.claimed_until, 1, rotation_key)


def _claim(
    queue: Queue,
    rows: QuerySet[CancellationItem],
    order: str,
    limit: int,
    rotation_key: tuple[str, ...],
) -> Claim | None:
    rotation = _rotations.setdefault(rotation_key, Rotation(order))
    window = rotation.window(rows, limit)
    exhausted = {item.pk for item in window if _has_no_attempts_left(queue, item)}
    for item in window:
        if item.pk in exhausted:
            _mark_failed(queue, rows, item)
    token = uuid4()
    pks = [item.pk for item in window if item.pk not in exhausted]
    update_unlocked(
        rows.filter(pk__in=pks),
        **{
            queue.attempts: F(queue.attempts) + 1,
            queue.claimed_by: token,
            queue.claimed_until: DatabaseNow() + CLAIM_DURATION,
        },
    )
    # Read the items again: another worker may have claimed some since the first query, or a
    # request with force may have changed them.
    fresh = Claim(queue, token, []).rows().in_bulk(pks)
    rotation.advance({*fresh, *exhausted})
    claimed = [fresh[item.pk] for item in window if item.pk in fresh]
    return Claim(queue, token, claimed) if window else None


def _has_no_attempts_left(queue: Queue, item: CancellationItem) -> bool:
    return bool(getattr(item, queue.attempts) >= settings.MAX_ATTEMPTS)


def _mark_failed(queue: Queue, rows: QuerySet[CancellationItem], item: CancellationItem) -> None:
    """Set an item to failed, unless another worker has attempted it since it was read."""
    error = getattr(item, queue.error) or "The worker ended during the last attempt."
    values = {queue.state: Delivery.FAILED, queue.due: None, queue.error: error}
    values |= {queue.claimed_by: None, queue.claimed_until: None}
    unchanged = rows.filter(**{"pk": item.pk, queue.attempts: getattr(item, queue.attempts)})
    if update_unlocked(unchanged, **values):
        shown = printable(item.run_id), printable(error)
        logger.error("%s of %s has failed: %s", queue.state, *shown)


def record(claim: Claim, values: Mapping[int, Mapping[str, Any]]) -> None:
    """Write results of claimed items and end the claim, with one UPDATE for equal results.

    Items that stay locked, for example by a handler, or are refused by a trigger are skipped; they
    are delivered again when the claim has expired.

    Args:
        claim: The claim.
        values: Field values by primary key of the item.
    """
    pks_by_values: dict[tuple[tuple[str, Any], ...], list[int]] = defaultdict(list)
    for pk, fields in values.items():
        pks_by_values[tuple(sorted(claim.released(**fields).items()))].append(pk)
    for pairs, pks in pks_by_values.items():
        unrecorded = claim.rows().filter(pk__in=pks)
        count = len(update_unlocked(unrecorded, **dict(pairs)))
        for pause in PAUSES_WHILE_LOCKED:
            if count == len(pks) or not unrecorded.exists():
                break
            # A worker that looks for due items locks rows for a moment, even of others' claims.
            time.sleep(pause)
            count += len(update_unlocked(unrecorded, **dict(pairs)))


def handling_failure(claim: Claim, item: CancellationItem, error: BaseException) -> Any:
    """Log the error of a handler, and return the field values to record."""
    is_last = item.handling_attempts >= settings.MAX_ATTEMPTS
    log_failure(claim.queue, item, error, is_last=is_last)
    wait = jitter(backoff(item.handling_attempts, LONGEST_WAIT_AFTER_FAILURE))
    return {
        "handling": Delivery.FAILED if is_last else Delivery.PENDING,
        "next_handling_at": None if is_last else DatabaseNow() + wait,
        "handling_error": error_text(error),
    }


def log_failure(
    queue: Queue, item: CancellationItem, error: BaseException, *, is_last: bool
) -> None:
    """Log a failed attempt; the first and the last one with a traceback."""
    attempts = getattr(item, queue.attempts)
    log = logger.error if is_last else logger.warning
    with_traceback = is_last or attempts == 1
    text = "".join(traceback.format_exception(error)) if with_traceback else error_text(error)
    # The end of a traceback has the error. Truncate again after redacting, as a truncated password
    # is not recognised.
    shown = printable_lines(redact(text[-10 * MAX_LOG_LENGTH :])[-MAX_LOG_LENGTH:].strip())
    log("%s of %s, attempt %d: %s", queue.state, printable(item.run_id), attempts, shown)


def error_text(error: BaseException) -> str:
    """Return an error as text for the database."""
    return describe_error(error, MAX_ERROR_LENGTH)


def jitter(wait: timedelta) -> timedelta:
    """Shorten a duration randomly by up to half, so that items are not all retried at once."""
    return wait * random.uniform(0.5, 1)  # spreads retries  # noqa: S311  # nosec B311
