"""The outbox: items of which an executor must be told, or that the host's handlers wait for.

An item is claimed in a short transaction, by a token and until a time. What comes of the claim is
recorded only while the item still has the token. A claim that has run out was made by a worker that
died; such items are claimed one at a time, as one of them may be what ended the worker.
"""

from __future__ import annotations

import logging
import random
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
from django_run_cancel.delivery.policy import LONGEST_WAIT_AFTER_FAILURE, exponential
from django_run_cancel.delivery.rotation import Rotation
from django_run_cancel.models import CancellationChunk, CancellationItem, run_rows
from django_run_cancel.safe_text import describe_error, printable, printable_lines, redact
from django_run_cancel.states import ChunkState, Delivery, StopState

logger = logging.getLogger("django_run_cancel")

CLAIM_DURATION = timedelta(seconds=60)
"""Far above what any backend may take."""

MAX_ALIASES = 1_000
MAX_ERROR_LENGTH = 1_000
MAX_LOG_LENGTH = 20_000


class Queue(NamedTuple):
    """The fields of an item that make a queue of the items."""

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
    """Items that this process alone works on for a while.

    Attributes:
        queue: As what they were claimed.
        token: What they have while the claim holds.
        items: The items, as they were when the claim was made.
    """

    queue: Queue
    token: UUID
    items: list[CancellationItem]

    def rows(self) -> QuerySet[CancellationItem]:
        """Return the items for which the claim still holds."""
        held = {self.queue.claimed_by: self.token, self.queue.state: Delivery.PENDING}
        return items().filter(**held)

    def released(self, **values: Any) -> dict[str, Any]:
        """Return values together with those that end the claim."""
        return {self.queue.claimed_by: None, self.queue.claimed_until: None, **values}


def retry_deliveries(among: QuerySet[CancellationItem] | None = None) -> int:
    """Try again what has failed for good: telling the executor, and handling.

    Args:
        among: Among these items; by default among all.

    Returns:
        How many items are due again.
    """
    among = CancellationItem.objects.all() if among is None else among
    among = among.using(database()).order_by()
    count = 0
    for queue in (DELIVERY, HANDLING):
        again = {queue.state: Delivery.PENDING, queue.attempts: 0, queue.due: DatabaseNow()}
        failed = {queue.state: Delivery.FAILED}
        for keys in batches(among.filter(**failed), "id"):
            count += len(update_unlocked(items().filter(pk__in=keys, **failed), **again))
    return count


def queue_size() -> dict[str, int]:
    """Return the figures to watch: numbers of items and runs, and an age in seconds."""
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
    """Return the alias of the database with the outbox."""
    return router.db_for_write(CancellationItem)


def items() -> QuerySet[CancellationItem]:
    """Return all items, of the database that is written to."""
    return CancellationItem.objects.using(database())


def aliases_with_due_items() -> list[str]:
    """Return the backends that have something to be told, in one statement."""
    pending = items().filter(delivery=Delivery.PENDING, claimed_by=None)
    due = pending.filter(next_attempt_at__lte=DatabaseNow())
    return read_distinct(due, "backend", MAX_ALIASES)


def claim_due(queue: Queue, limit: int, **lookups: str) -> Claim | None:
    """Claim items that are due, those first that have been for longest, and count the attempt.

    Args:
        queue: As what.
        limit: How many at most.
        lookups: Among which items.

    Returns:
        The claim; None when nothing is due.
    """
    due = items().filter(
        **{queue.state: Delivery.PENDING, queue.claimed_by: None},
        **{f"{queue.due}__lte": DatabaseNow()},
        **lookups,
    )
    return _claim(queue, due, queue.due, limit, (queue.state, *lookups.values()))


def claim_abandoned(queue: Queue) -> Claim | None:
    """Claim a single item whose claim has run out, and count the attempt; None if there is none."""
    abandoned = items().filter(
        **{queue.state: Delivery.PENDING, f"{queue.claimed_until}__lte": DatabaseNow()}
    )
    place = (queue.claimed_until,)
    return _claim(queue, abandoned, queue.claimed_until, 1, place)


def _claim(
    queue: Queue,
    rows: QuerySet[CancellationItem],
    order: str,
    limit: int,
    place: tuple[str, ...],
) -> Claim | None:
    rotation = _rotations.setdefault(place, Rotation(order))
    window = rotation.window(rows, limit)
    spent = {item.pk for item in window if _is_spent(queue, item)}
    for item in window:
        if item.pk in spent:
            _give_up(queue, rows, item)
    token = uuid4()
    pks = [item.pk for item in window if item.pk not in spent]
    update_unlocked(
        rows.filter(pk__in=pks),
        **{
            queue.attempts: F(queue.attempts) + 1,
            queue.claimed_by: token,
            queue.claimed_until: DatabaseNow() + CLAIM_DURATION,
        },
    )
    # Read again: another worker may have claimed some of them since the window was read, or
    # somebody may have asked for force.
    fresh = Claim(queue, token, []).rows().in_bulk(pks)
    rotation.advance({*fresh, *spent})
    claimed = [fresh[item.pk] for item in window if item.pk in fresh]
    return Claim(queue, token, claimed) if window else None


def _is_spent(queue: Queue, item: CancellationItem) -> bool:
    return bool(getattr(item, queue.attempts) >= settings.MAX_ATTEMPTS)


def _give_up(queue: Queue, rows: QuerySet[CancellationItem], item: CancellationItem) -> None:
    """Let an item fail, unless somebody has recorded something else of it meanwhile."""
    error = getattr(item, queue.error) or "The worker ended during the last attempt."
    values = {queue.state: Delivery.FAILED, queue.due: None, queue.error: error}
    values |= {queue.claimed_by: None, queue.claimed_until: None}
    same = rows.filter(**{"pk": item.pk, queue.attempts: getattr(item, queue.attempts)})
    if update_unlocked(same, **values):
        shown = printable(item.run_id), printable(error)
        logger.error("%s of %s has failed: %s", queue.state, *shown)


def record(claim: Claim, values: Mapping[int, Mapping[str, Any]]) -> None:
    """Write what came of claimed items, those with the same in one statement, and release them.

    What a handler of the host has locked for long, or a trigger refuses, is told again when the
    claim has run out.

    Args:
        claim: The claim.
        values: Fields by the key of the item.
    """
    same: dict[tuple[tuple[str, Any], ...], list[int]] = defaultdict(list)
    for pk, fields in values.items():
        same[tuple(sorted(claim.released(**fields).items()))].append(pk)
    for pairs, pks in same.items():
        update_unlocked(claim.rows().filter(pk__in=pks), **dict(pairs))


def failed_handling(claim: Claim, item: CancellationItem, error: BaseException) -> Any:
    """Log a handler that failed, and return what to record."""
    is_last = item.handling_attempts >= settings.MAX_ATTEMPTS
    log_failure(claim.queue, item, error, is_last=is_last)
    wait = spread(exponential(item.handling_attempts, LONGEST_WAIT_AFTER_FAILURE))
    return {
        "handling": Delivery.FAILED if is_last else Delivery.PENDING,
        "next_handling_at": None if is_last else DatabaseNow() + wait,
        "handling_error": described(error),
    }


def log_failure(
    queue: Queue, item: CancellationItem, error: BaseException, *, is_last: bool
) -> None:
    """Log an attempt that failed, with where it came from at the first attempt and the last."""
    attempts = getattr(item, queue.attempts)
    log = logger.error if is_last else logger.warning
    with_traceback = is_last or attempts == 1
    text = "".join(traceback.format_exception(error)) if with_traceback else described(error)
    # The end says what has failed. Cut afterwards too: half a password is recognised as none.
    shown = printable_lines(redact(text[-10 * MAX_LOG_LENGTH :])[-MAX_LOG_LENGTH:].strip())
    log("%s of %s, attempt %d: %s", queue.state, printable(item.run_id), attempts, shown)


def described(error: BaseException) -> str:
    """Return an error as text that may be recorded."""
    return describe_error(error, MAX_ERROR_LENGTH)


def spread(wait: timedelta) -> timedelta:
    """Return half of a time to all of it, so that what fails together is not tried together."""
    return wait * random.uniform(0.5, 1)  # spreads retries  # noqa: S311  # nosec B311
