"""Decides the outcome of a cancellation for each run, from locked rows and without queries."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from django_run_cancel.states import ACTIVE, SUCCESSFUL, Outcome, RunStatus, StopState, Via

if TYPE_CHECKING:
    from django_run_cancel.db.locks import LockedRun


class Item(NamedTuple):
    """One run in a cancellation.

    Attributes:
        run_id: Public id, exactly as requested.
        outcome: Result for this run.
        via: Whether the id was requested, or the run is a descendant of a requested one.
        previous_status: Status before the cancellation; blank if the run was not found.
    """

    run_id: str
    outcome: Outcome
    via: Via
    previous_status: str


class Decision(NamedTuple):
    """The changes that a cancellation makes.

    Attributes:
        items: One for each requested id, in that order, then one for each affected descendant.
        changed: The rows to cancel.
        forced: Rows of runs that were cancelled before and are still stopping, whose executors get
            a stop request with force.
        roots: The requested runs whose descendants are cancelled, too.
        tenant: Tenant of the requested runs; None if they have several or none was found.
    """

    items: list[Item]
    changed: list[LockedRun]
    forced: list[LockedRun]
    roots: list[LockedRun]
    tenant: str | None


def decide(asked: list[str], reached: set[Any], rows: list[LockedRun], *, force: bool) -> Decision:
    """Decide the outcome for each requested run and its descendants.

    Args:
        asked: The requested ids, without duplicates.
        reached: Primary keys of the rows that the caller may cancel.
        rows: The rows of these runs and of all their descendants.
        force: Whether to send stop requests with force, also for runs that are still stopping.
    """
    # Compare ids in Python: the database may consider different ids equal.
    rows_by_id = {row.run_id: row for row in rows if row.pk in reached}
    items = []
    roots = []
    for run_id in asked:
        row = rows_by_id.get(run_id)
        if row is None:
            items.append(Item(run_id, Outcome.NOT_FOUND, Via.REQUESTED, ""))
            continue
        outcome = _outcome(row)
        items.append(Item(run_id, outcome, Via.REQUESTED, row.status))
        if outcome in SUCCESSFUL:
            roots.append(row)
    requested = [rows_by_id[run_id] for run_id in asked if run_id in rows_by_id]
    has_others = len(rows) > len(requested)
    below = decide_cascade(_descendants(roots, rows) if has_others else [], roots, force=force)
    tenants = {row.tenant for row in requested}
    return Decision(
        items=items + below.items,
        changed=[row for row in roots if row.status in ACTIVE] + below.changed,
        forced=[row for row in roots if force and _can_be_killed(row)] + below.forced,
        roots=roots,
        tenant=tenants.pop() if len(tenants) == 1 else None,
    )


def decide_cascade(below: list[LockedRun], roots: list[LockedRun], *, force: bool) -> Decision:
    """Decide the outcome for runs below cancelled runs.

    Args:
        below: The rows of these runs.
        roots: The cancelled runs above them, or these runs themselves.
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
