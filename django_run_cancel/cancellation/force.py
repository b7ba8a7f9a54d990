"""Force for runs that were asked to stop before: their deliveries become due again, by force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.models import QuerySet

from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.locks import LockedRun, update_unlocked
from django_run_cancel.db.statements import MAX_LISTED_ON_MYSQL, chunks
from django_run_cancel.models import CancellationItem
from django_run_cancel.states import Delivery

if TYPE_CHECKING:
    from django_run_cancel.models import AbstractRun

DUE_BY_FORCE = {
    "delivery": Delivery.PENDING,
    "force": True,
    "attempts": 0,
    "next_attempt_at": DatabaseNow(),
    "escalates_at": None,
    "last_error": "",
}
"""The fields of an item of which the executor is to be told by force, at once."""


def force_deliveries(stopping: list[LockedRun], using: str) -> list[LockedRun]:
    """Make the deliveries of runs due again, by force, unless they are or were told by force.

    A delivery worker that is telling an executor politely loses its claim, and records nothing.

    Args:
        stopping: Locked rows of cancelled runs that are still stopping and have an executor.
        using: Alias of the database.

    Returns:
        Those of them without a delivery that could be written. It may be deleted, or locked: for
        long by a handler of the host, which may even wait for a run that is locked here.
    """
    by_id = {row.run_id: row for row in stopping}
    items = CancellationItem.objects.using(using)
    untold = []
    for run_ids in chunks(sorted(by_id), MAX_LISTED_ON_MYSQL):
        last = {
            item.run_id: item
            for item in _deliveries(items.filter(run_id__in=run_ids))
            # Another run may have had the id before.
            if item.run_id in by_id and item.external_id == by_id[item.run_id].external_id
        }
        to_force = {item.pk for item in last.values() if not is_told_by_force(item)}
        rows = items.filter(pk__in=to_force)
        written = update_unlocked(rows, **DUE_BY_FORCE, claimed_by=None, claimed_until=None)
        unwritten = to_force.difference(written)
        done = {run_id for run_id, item in last.items() if item.pk not in unwritten}
        untold += [by_id[run_id] for run_id in run_ids if run_id not in done]
    return untold


def is_told_by_force(item: CancellationItem) -> bool:
    """Tell whether an executor has been told by force, or is about to be."""
    return item.force and item.delivery != Delivery.FAILED


def last_delivery(run: AbstractRun) -> CancellationItem | None:
    """Return the item by which the executor of a run is or was told last; None if by none."""
    items = CancellationItem.objects.filter(run_id=run.run_id, external_id=run.external_id)
    return _deliveries(items).last()


def _deliveries(items: QuerySet[CancellationItem]) -> QuerySet[CancellationItem]:
    return items.exclude(delivery=Delivery.NOT_NEEDED).order_by("pk")
