"""Sends a second stop request, with force, for runs that were cancelled before and still run."""

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
"""Values that make an item due now for a stop request with force."""


def force_deliveries(stopping: list[LockedRun], using: str) -> list[LockedRun]:
    """Make the items of runs due again with force, unless they were already delivered with force.

    This ends the claim of a delivery worker that is sending a stop request without force, so that
    the worker does not record its result.

    Args:
        stopping: Locked rows of cancelled runs that are still stopping and have an executor.
        using: Alias of the database.

    Returns:
        The runs whose item could not be updated and that need a new item. Their item has been
        deleted, or is locked, perhaps by a handler of the host. Waiting for that lock could
        deadlock, as the handler may be waiting for a run that is locked here.
    """
    by_id = {row.run_id: row for row in stopping}
    items = CancellationItem.objects.using(using)
    unwritten_runs = []
    for run_ids in chunks(sorted(by_id), MAX_LISTED_ON_MYSQL):
        latest = {
            item.run_id: item
            for item in _deliveries(items.filter(run_id__in=run_ids))
            # An item of an earlier run with the same run_id has another external_id.
            if item.run_id in by_id and item.external_id == by_id[item.run_id].external_id
        }
        to_force = {item.pk for item in latest.values() if not is_told_by_force(item)}
        rows = items.filter(pk__in=to_force)
        written = update_unlocked(rows, **DUE_BY_FORCE, claimed_by=None, claimed_until=None)
        unwritten_pks = to_force.difference(written)
        done = {run_id for run_id, item in latest.items() if item.pk not in unwritten_pks}
        unwritten_runs += [by_id[run_id] for run_id in run_ids if run_id not in done]
    return unwritten_runs


def is_told_by_force(item: CancellationItem) -> bool:
    """Tell whether a stop request with force has been sent to the executor, or is due."""
    return item.force and item.delivery != Delivery.FAILED


def told_by_force() -> QuerySet[CancellationItem]:
    """Return the items of which ``is_told_by_force`` is true."""
    return CancellationItem.objects.filter(force=True).exclude(
        delivery__in=(Delivery.FAILED, Delivery.NOT_NEEDED)
    )


def last_delivery(run: AbstractRun) -> CancellationItem | None:
    """Return the latest item that sends or sent a stop request for a run; None without one."""
    items = CancellationItem.objects.filter(run_id=run.run_id, external_id=run.external_id)
    return _deliveries(items).last()


def _deliveries(items: QuerySet[CancellationItem]) -> QuerySet[CancellationItem]:
    return items.exclude(delivery=Delivery.NOT_NEEDED).order_by("pk")
