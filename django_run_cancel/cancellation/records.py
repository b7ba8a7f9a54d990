"""Creates the Cancellation of a request, and its items: one for each run."""

from __future__ import annotations

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


def new_record(items: list[Item], fields: dict[str, Any]) -> Cancellation:
    requested = [item for item in items if item.via == Via.REQUESTED]
    return Cancellation(**fields, total_count=len(requested), **counts_of(items))


def counts_of(items: list[Item]) -> dict[str, int]:
    """Count the items by outcome; keys are the names of the model's count fields."""
    outcomes = [item.outcome for item in items if item.via == Via.REQUESTED]
    cancelled = sum(outcomes.count(outcome) for outcome in SUCCESSFUL)
    return {
        "cancelled_count": cancelled,
        "already_count": outcomes.count(Outcome.ALREADY_CANCELLED),
        "failed_count": len(outcomes) - cancelled,
        "cascaded_count": sum(
            item.via == Via.CASCADE and item.outcome == Outcome.CANCELLED for item in items
        ),
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


def columns_of_items(
    items: list[Item],
    changed: list[LockedRun],
    to_repeat: list[LockedRun],
    *,
    force: bool,
) -> dict[str, Sequence[Any]]:
    """Return the values of an item for each run, by the name of the field, but for its record.

    The delivery worker processes the items of cancelled runs.

    Args:
        items: Outcome of each run.
        changed: Runs that this request cancels.
        to_repeat: Runs that were cancelled before; these items send a second stop request.
        force: Whether executors may kill started work at once.
    """
    rows = {row.run_id: row for row in [*changed, *to_repeat]}
    affected = [rows.get(item.run_id) if item.outcome in SUCCESSFUL else None for item in items]
    # A run without an external_id was never dispatched to an executor.
    to_stop = [bool(row and row.backend and row.external_id) for row in affected]
    # Handlers have been called for runs that were cancelled before.
    has_handlers = bool(settings.HANDLERS)
    to_handle = [has_handlers and item.outcome is Outcome.CANCELLED for item in items]
    return {
        "run_id": [
            item.run_id if row else recorded_id(item.run_id)
            for item, row in zip(items, affected, strict=True)
        ],
        "outcome": [item.outcome for item in items],
        "via": [item.via for item in items],
        "previous_status": [item.previous_status for item in items],
        "backend": [row.backend if row else "" for row in affected],
        "external_id": [row.external_id if row else "" for row in affected],
        "delivery": [_delivery(is_needed) for is_needed in to_stop],
        "attempts": [0] * len(items),
        "next_attempt_at": [writes.NOW if is_needed else None for is_needed in to_stop],
        "last_error": [""] * len(items),
        "force": [force] * len(items),
        "handling": [_delivery(is_needed) for is_needed in to_handle],
        "handling_attempts": [0] * len(items),
        "next_handling_at": [writes.NOW if is_needed else None for is_needed in to_handle],
        "handling_error": [""] * len(items),
    }


def _delivery(is_needed: bool) -> Delivery:
    return Delivery.PENDING if is_needed else Delivery.NOT_NEEDED


def recorded_id(run_id: str) -> str:
    """Return an id as items store it: escaped and truncated if it is no valid run id."""
    if is_storable(run_id, MAX_RUN_ID_LENGTH):
        return run_id
    return ascii(run_id)[1:-1][: MAX_RUN_ID_LENGTH - 1] + "…"
