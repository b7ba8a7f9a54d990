"""Deciding, from locked rows alone, what a cancellation does to each run."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from django_run_cancel.states import ACTIVE, SUCCESSFUL, Outcome, RunStatus, StopState, Via

if TYPE_CHECKING:
    from django_run_cancel.db.locks import LockedRun


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
        forced: The rows that were cancelled before and still stop, whose executors are to be told
            by force.
        roots: The rows whose descendants go along.
        tenant: Owner of the runs that were asked for, when it is a single one.
    """

    items: list[Item]
    changed: list[LockedRun]
    forced: list[LockedRun]
    roots: list[LockedRun]
    tenant: str | None


def decide(asked: list[str], reached: set[Any], rows: list[LockedRun], *, force: bool) -> Decision:
    """Decide what happens to each run.

    Args:
        asked: The ids, without repetitions.
        reached: Keys of the runs among the rows that the caller may ask for.
        rows: The rows of these runs and of all their descendants.
        force: Whether what started is to be killed, also where it was asked to stop before.
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
        outcome = _outcome(row)
        items.append(Item(run_id, outcome, Via.REQUESTED, row.status))
        if outcome in SUCCESSFUL:
            roots.append(row)
    below = decide_cascade(_descendants(roots, rows), roots, force=force)
    tenants = {found[run_id].tenant for run_id in asked if run_id in found}
    return Decision(
        items=items + below.items,
        changed=[row for row in roots if row.status in ACTIVE] + below.changed,
        forced=[row for row in roots if force and _can_be_killed(row)] + below.forced,
        roots=roots,
        tenant=tenants.pop() if len(tenants) == 1 else None,
    )


def decide_cascade(below: list[LockedRun], roots: list[LockedRun], *, force: bool) -> Decision:
    """Decide what happens to runs because runs above them are cancelled.

    Args:
        below: The rows of the runs.
        roots: The rows whose descendants they are, or themselves.
        force: As for ``decide``.
    """
    changed = [row for row in below if row.status in ACTIVE]
    forced = [row for row in below if force and _can_be_killed(row)]
    items = [Item(row.run_id, _outcome(row), Via.CASCADE, row.status) for row in changed + forced]
    return Decision(items, changed, forced, roots, None)


def _outcome(row: LockedRun) -> Outcome:
    if row.status in ACTIVE:
        return Outcome.CANCELLED
    if row.status == RunStatus.CANCELLED:
        return Outcome.ALREADY_CANCELLED
    return Outcome.ALREADY_FINISHED


def _can_be_killed(row: LockedRun) -> bool:
    is_stopping = row.status == RunStatus.CANCELLED and row.stop_state == StopState.STOPPING
    return is_stopping and bool(row.backend and row.external_id)


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
