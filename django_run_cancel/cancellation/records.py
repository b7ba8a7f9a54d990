"""Creates the Cancellation of a request, and its items: one for each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError, transaction

from django_run_cancel.cancellation.arguments import MAX_RUN_ID_LENGTH
from django_run_cancel.cancellation.decision import Item
from django_run_cancel.conf import settings
from django_run_cancel.db import writes
from django_run_cancel.db.locks import LockedRun
from django_run_cancel.db.retry import StartOver
from django_run_cancel.models import Cancellation
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import SUCCESSFUL, Delivery, Outcome, Via

ITEM_FIELDS = (
    *("cancellation", *Item._fields, "backend", "external_id"),
    *("delivery", "attempts", "next_attempt_at", "last_error", "force"),
    *("handling", "handling_attempts", "next_handling_at", "handling_error"),
)
DUE = (Delivery.PENDING, 0, writes.NOW, "")
NOT_NEEDED = (Delivery.NOT_NEEDED, 0, None, "")


def new_record(items: list[Item], fields: dict[str, Any]) -> Cancellation:
    requested = [item for item in items if item.via == Via.REQUESTED]
    return Cancellation(**fields, total_count=len(requested), **counts_of(items))


def counts_of(items: list[Item]) -> dict[str, int]:
    """Count the items by outcome; keys are the names of the model's count fields."""
    counts = Counter((item.via, item.outcome) for item in items)
    requested = {outcome: counts[Via.REQUESTED, outcome] for outcome in Outcome}
    cancelled = sum(requested[outcome] for outcome in SUCCESSFUL)
    return {
        "cancelled_count": cancelled,
        "already_count": requested[Outcome.ALREADY_CANCELLED],
        "failed_count": sum(requested.values()) - cancelled,
        "cascaded_count": counts[Via.CASCADE, Outcome.CANCELLED],
    }


def insert_record(record: Cancellation, using: str, restartable: bool) -> Cancellation | None:
    """Insert a Cancellation. If one with the same idempotency key exists, return that instead.

    Raises:
        StartOver: Another transaction has inserted it, and this one cannot see it yet.
    """
    if not record.idempotency_key:
        writes.insert(record, using)
        return None
    try:
        with transaction.atomic(using=using):
            writes.insert(record, using)
        return None
    except IntegrityError:
        earlier = _first_with_key(record, using)
        if earlier is None and restartable:
            raise StartOver from None  # committed after this transaction's snapshot
        if earlier is None:
            raise
        return earlier


def _first_with_key(record: Cancellation, using: str) -> Cancellation | None:
    names = ("idempotency_key", "requested_by", "source")
    key = {name: getattr(record, name) for name in names}
    return Cancellation.objects.using(using).filter(**key).first()


def values_of_items(
    items: list[Item],
    changed: list[LockedRun],
    to_repeat: list[LockedRun],
    record: Cancellation,
) -> list[Sequence[Any]]:
    """Return the values of an item for each run, in the order of ``ITEM_FIELDS``.

    The delivery worker processes the items of cancelled runs.

    Args:
        items: Outcome of each run.
        changed: Runs that this request cancels.
        to_repeat: Runs that were cancelled before; these items send a second stop request.
        record: The Cancellation.
    """
    rows = {row.run_id: row for row in [*changed, *to_repeat]}
    handling = DUE if settings.HANDLERS else NOT_NEEDED

    def values(item: Item) -> Sequence[Any]:
        row = rows.get(item.run_id) if item.outcome in SUCCESSFUL else None
        if row is None:
            outcome_fields = (recorded_id(item.run_id), *item[1:])
            return (record.pk, *outcome_fields, "", "", *NOT_NEEDED, record.force, *NOT_NEEDED)
        # A run without an external_id was never dispatched to an executor.
        delivery = DUE if row.backend and row.external_id else NOT_NEEDED
        executor = (row.backend, row.external_id)
        # Handlers have been called for runs that were cancelled before.
        handler_fields = handling if item.outcome == Outcome.CANCELLED else NOT_NEEDED
        return (record.pk, *item, *executor, *delivery, record.force, *handler_fields)

    return [values(item) for item in items]


def recorded_id(run_id: str) -> str:
    """Return an id as items store it: escaped and truncated if it is no valid run id."""
    if is_storable(run_id, MAX_RUN_ID_LENGTH):
        return run_id
    return ascii(run_id)[1:-1][: MAX_RUN_ID_LENGTH - 1] + "…"
