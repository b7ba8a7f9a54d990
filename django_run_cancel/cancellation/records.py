"""The record of a cancellation: building it, and writing its items, one for each run."""

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
from django_run_cancel.models import Cancellation, CancellationItem
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import SUCCESSFUL, Delivery, Outcome, Via

ITEM_FIELDS = (
    *("cancellation", "run_id", "outcome", "via", "previous_status", "backend", "external_id"),
    *("delivery", "attempts", "next_attempt_at", "last_error", "force"),
    *("handling", "handling_attempts", "next_handling_at", "handling_error"),
)
DUE = (Delivery.PENDING, 0, writes.NOW, "")
NOT_NEEDED = (Delivery.NOT_NEEDED, 0, None, "")


def new_record(items: list[Item], fields: dict[str, Any]) -> Cancellation:
    requested = [item for item in items if item.via == Via.REQUESTED]
    return Cancellation(**fields, total_count=len(requested), **counts_of(items))


def counts_of(items: list[Item]) -> dict[str, int]:
    """Return the counts of outcomes, by the names of their fields."""
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
    """Insert a record, or return the earlier one with the same idempotency key."""
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


def write_items(
    items: list[Item],
    changed: list[LockedRun],
    untold: list[LockedRun],
    record: Cancellation,
    using: str,
) -> None:
    """Write an item for each run; those of cancelled runs are what the delivery worker works off.

    Args:
        items: What happened to each run.
        changed: The runs that are cancelled.
        untold: Runs that were cancelled before and are told to stop once more, by these items.
        record: The record of the request.
        using: Alias of the database.
    """
    rows = {row.run_id: row for row in [*changed, *untold]}
    handling = DUE if settings.HANDLERS else NOT_NEEDED

    def values(item: Item) -> Sequence[Any]:
        what = (recorded_id(item.run_id), item.outcome, item.via, item.previous_status)
        row = rows.get(item.run_id) if item.outcome in SUCCESSFUL else None
        if row is None:
            return (record.pk, *what, "", "", *NOT_NEEDED, record.force, *NOT_NEEDED)
        # A run without an id at its executor was never handed over.
        delivery = DUE if row.backend and row.external_id else NOT_NEEDED
        executor = (row.backend, row.external_id)
        # Of runs that were cancelled before, the handlers know.
        handled = handling if item.outcome == Outcome.CANCELLED else NOT_NEEDED
        return (record.pk, *what, *executor, *delivery, record.force, *handled)

    writes.insert_rows(CancellationItem, ITEM_FIELDS, map(values, items), using)


def recorded_id(run_id: str) -> str:
    """Return an id as the record holds it: escaped and cut when no run could have it."""
    if is_storable(run_id, MAX_RUN_ID_LENGTH):
        return run_id
    return ascii(run_id)[1:-1][: MAX_RUN_ID_LENGTH - 1] + "…"
