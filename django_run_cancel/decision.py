"""Deciding, from locked rows alone, what a cancellation does to each run."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from django_run_cancel.states import ACTIVE, SUCCESSFUL, Outcome, RunStatus, Via

if TYPE_CHECKING:
    from django_run_cancel.sql import LockedRun


class Item(NamedTuple):
    """One run in a cancellation.

    Attributes:
        run_id: Public id, exactly as asked for.
        outcome: What happened to it.
        via: Whether it was asked for, or went with a run above it.
        previous_status: Its status before; blank when it was not found.
    """

    run_id: str
    outcome: Outcome
    via: Via
    previous_status: str


class Decision(NamedTuple):
    """What is to happen.

    Attributes:
        items: One per id that was asked for, in that order, then one per child that goes along.
        changed: The rows to cancel.
        tenant: Owner of the runs that were asked for, when it is a single one.
    """

    items: list[Item]
    changed: list[LockedRun]
    tenant: str | None


def decide(asked: list[str], reached: set[Any], rows: list[LockedRun]) -> Decision:
    """Decide what happens to each run.

    Args:
        asked: The ids, without repetitions.
        reached: Keys of the runs among the rows that the caller may ask for.
        rows: The rows of these runs and of all their descendants.
    """
    # By exact equality: whatever the database holds equal to an id was not asked for.
    found = {row.run_id: row for row in rows if row.pk in reached}
    items = []
    roots = []
    for run_id in asked:
        row = found.get(run_id)
        if row is None:
            items.append(Item(run_id, Outcome.NOT_FOUND, Via.REQUESTED, ""))
            continue
        if row.status in ACTIVE:
            outcome = Outcome.CANCELLED
        elif row.status == RunStatus.CANCELLED:
            outcome = Outcome.ALREADY_CANCELLED
        else:
            outcome = Outcome.ALREADY_FINISHED
        items.append(Item(run_id, outcome, Via.REQUESTED, row.status))
        if outcome in SUCCESSFUL:
            roots.append(row)
    cascade = [row for row in _descendants(roots, rows) if row.status in ACTIVE]
    items += [Item(row.run_id, Outcome.CANCELLED, Via.CASCADE, row.status) for row in cascade]
    changed = [row for row in roots if row.status in ACTIVE] + cascade
    tenants = {found[run_id].tenant for run_id in asked if run_id in found}
    return Decision(items, changed, tenants.pop() if len(tenants) == 1 else None)


def _descendants(roots: list[LockedRun], rows: list[LockedRun]) -> list[LockedRun]:
    children = defaultdict(list)
    for row in rows:
        children[row.parent].append(row)
    seen = {row.pk for row in roots}
    below: list[LockedRun] = []
    queue = list(roots)
    while queue:
        for row in children[queue.pop().pk]:
            if row.pk not in seen:
                seen.add(row.pk)
                below.append(row)
                queue.append(row)
    return sorted(below)
