"""Parts of the transaction that cancels runs: locks trees of runs, and writes a Decision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.db.models import Model

from django_run_cancel import signals
from django_run_cancel.cancellation.decision import Decision
from django_run_cancel.cancellation.force import force_deliveries
from django_run_cancel.cancellation.records import columns_of_items
from django_run_cancel.conf import settings
from django_run_cancel.db import locks, trees, writes
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.locks import LockedRun
from django_run_cancel.db.retry import StartOver
from django_run_cancel.db.statements import MAX_LISTED_ON_MYSQL, Statement, chunks
from django_run_cancel.db.writes import Parents
from django_run_cancel.models import Cancellation, CancellationChunk, CancellationItem
from django_run_cancel.states import ChunkKind, StopState

CHUNK_SIZE = 2_000
"""Maximum number of ids in a chunk; one transaction may cancel all of them.

Larger ones are hardly faster, and are shared by fewer workers.
"""

CHUNKS_AT_ONCE = 20
"""Number of chunks to insert by one statement."""


NO_PARENTS = Parents(set())


class Trees(NamedTuple):
    """Runs with their descendants.

    Attributes:
        reached: Primary keys of the selected runs.
        rows: Their rows, and those of their descendants unless there are too many.
        is_complete: Whether ``rows`` contains the descendants.
        parents: The rows whose children ``write_decision`` reads again.
    """

    reached: set[Any]
    rows: list[LockedRun]
    is_complete: bool
    parents: Parents


def read_trees(asked: Statement, model: type[Model], using: str) -> Trees:
    """Read the trees of runs without locks, for a dry run."""
    reached, pks, is_complete = _read_keys(asked, model, using)
    return Trees(reached, locks.read_runs(model, pks, using), is_complete, NO_PARENTS)


def lock_trees(asked: Statement, model: type[Model], using: str, restartable: bool) -> Trees:
    """Lock runs and all their descendants, or only the runs if there are too many descendants.

    Nobody can create a child of a locked run. ``write_decision`` finds children that were created
    after the keys were read, and before the rows were locked.

    Args:
        asked: The query of the primary keys of the runs, at most ``CHUNK_SIZE``.
        model: The run model.
        using: Alias of the database.
        restartable: Whether the transaction can be repeated; if not, runs that were added to the
            trees before they were locked are locked here.
    """
    if rows := locks.lock_childless(asked, model, using):
        reached, pks, is_complete = {row.pk for row in rows}, {row.pk for row in rows}, True
        parents = Parents(reached, are_childless=True)
    else:
        reached, pks, is_complete = _read_keys(asked, model, using)
        rows = locks.lock_runs(model, pks, using)
        parents = Parents(pks)
    if not is_complete:
        return Trees(reached, rows, is_complete, NO_PARENTS)
    if restartable:
        return Trees(reached, rows, is_complete, parents)
    # These locks break the order of locks, and could deadlock.
    unseen = pks
    while unseen := trees.read_children(model, unseen, using) - pks:
        rows += locks.lock_runs(model, unseen, using)
        pks |= unseen
    return Trees(reached, rows, is_complete, NO_PARENTS)


def _read_keys(asked: Statement, model: type[Model], using: str) -> tuple[set[Any], set[Any], bool]:
    # Twice CHUNK_SIZE: the query may return the keys of the runs themselves twice.
    limit = settings.MAX_TREE + 2 * CHUNK_SIZE + 1
    reached, pks = trees.read_closure(asked, model, using, limit)
    is_complete = len(pks - reached) <= settings.MAX_TREE
    return reached, pks if is_complete else reached, is_complete


def write_decision(
    decision: Decision, tree: Trees, record: Cancellation, model: type[Model], using: str
) -> None:
    """Write a decision about locked runs, and send signals after the commit.

    Args:
        decision: The changes to write.
        tree: The locked runs. If the descendants are not among them, this writes chunks, so that
            delivery workers cancel them.
        record: The Cancellation, which is inserted if it has no primary key yet.
        model: The run model.
        using: Alias of the database.

    Raises:
        StartOver: Runs were added to the trees before they were locked.
    """
    to_repeat = force_deliveries(decision.forced, using) if decision.forced else []
    items = columns_of_items(decision.items, decision.changed, to_repeat, force=record.force)
    children = writes.write_cancellation(
        record,
        (model, [row.pk for row in decision.changed]),
        (CancellationItem, items),
        tree.parents,
        using,
    )
    # Of runs that had no children, one child each is read: a requested run that has been given this
    # parent meanwhile would hide a new child.
    known = set() if tree.parents.are_childless else tree.parents.pks
    if children - known:
        raise StartOver
    if decision.changed:
        if settings.LISTEN:
            writes.notify(using)
        _announce_after_commit(model, decision.changed, record, using)
    if decision.roots and not tree.is_complete:
        parents = (row.run_id for row in decision.roots)
        write_chunks(record, ChunkKind.CHILDREN, parents, using)


def write_chunks(
    record: Cancellation,
    kind: ChunkKind,
    run_ids: Iterable[str],
    using: str,
    hidden: frozenset[str] = frozenset(),
) -> int:
    """Insert chunks with these ids for the delivery workers, and return the number of ids."""
    is_mysql = connections[using].vendor == "mysql"
    size = min(CHUNK_SIZE, MAX_LISTED_ON_MYSQL) if is_mysql else CHUNK_SIZE
    rows = (
        CancellationChunk(
            cancellation=record,
            kind=kind,
            run_ids=part,
            hidden_ids=[run_id for run_id in part if run_id in hidden],
            size=len(part),
            advanced_at=DatabaseNow(),
        )
        for part in chunks(run_ids, size)
    )
    total = 0
    for some in chunks(rows, CHUNKS_AT_ONCE):  # do not hold a million ids in memory
        CancellationChunk.objects.using(using).bulk_create(some)
        total += sum(row.size for row in some)
    return total


def _announce_after_commit(
    model: type[Model], changed: list[LockedRun], record: Cancellation, using: str
) -> None:
    run_ids = [row.run_id for row in changed]
    never_started = [row.run_id for row in changed if row.never_started]
    about = {"sender": model, "cancellation_id": record.cancellation_id}

    def announce() -> None:
        # send_robust() logs errors of receivers.
        if signals.run_cancelled.has_listeners(model):
            for run_id in run_ids:
                signals.run_cancelled.send_robust(run_id=run_id, **about)
        signals.runs_cancelled.send_robust(run_ids=run_ids, **about)
        if signals.run_stopped.has_listeners(model):
            for run_id in never_started:
                signals.run_stopped.send_robust(
                    run_id=run_id, stop_state=StopState.NEVER_STARTED.value, **about
                )

    transaction.on_commit(announce, using=using)
