"""Parts of a transaction that cancels runs: locking their trees, and writing what was decided."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Model, QuerySet

from django_run_cancel import signals
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.cancellation.decision import Decision
from django_run_cancel.cancellation.force import force_deliveries
from django_run_cancel.cancellation.records import write_items
from django_run_cancel.conf import settings
from django_run_cancel.db import locks, trees, writes
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.locks import LockedRun
from django_run_cancel.db.retry import StartOver
from django_run_cancel.db.statements import MAX_LISTED_ON_MYSQL, chunks
from django_run_cancel.models import Cancellation, CancellationChunk
from django_run_cancel.states import ChunkKind, StopState

CHUNK_SIZE = MAX_LISTED_ON_MYSQL
"""Ids in a chunk, of which all may be cancelled in one transaction."""

CHUNKS_AT_ONCE = 20
"""Chunks that are written by one statement."""


class Trees(NamedTuple):
    """Runs with their descendants.

    Attributes:
        reached: The keys of the runs that were selected.
        rows: Their rows, and those of their descendants if these are not too many.
        is_complete: Whether the descendants are among the rows.
    """

    reached: set[Any]
    rows: list[LockedRun]
    is_complete: bool


def read_trees(scope: QuerySet[Any], model: type[Model], using: str) -> Trees:
    """Read the trees of these runs without locking anything, for a dry run."""
    reached, pks, is_complete = _read_keys(scope, model, using)
    return Trees(reached, locks.read_runs(model, pks, using), is_complete)


def lock_trees(scope: QuerySet[Any], model: type[Model], using: str, restartable: bool) -> Trees:
    """Lock the trees of these runs; of trees larger than ``RUN_CANCEL_MAX_TREE`` only their roots.

    Args:
        scope: The runs, at most as many as a call of ``cancel_runs`` takes.
        model: The run model.
        using: Alias of the database.
        restartable: Whether the transaction may begin again.

    Raises:
        StartOver: The trees have grown meanwhile, and the transaction may begin again.
    """
    reached, pks, is_complete = _read_keys(scope, model, using)
    rows = locks.lock_runs(model, pks, using)
    unseen = trees.read_children(model, pks, using) - pks if is_complete else set()
    while unseen:
        if restartable:
            # Locked now they could be out of order, and out of order there are deadlocks.
            raise StartOver
        rows += locks.lock_runs(model, unseen, using)
        pks |= unseen
        unseen = trees.read_children(model, unseen, using) - pks
    return Trees(reached, rows, is_complete)


def _read_keys(
    scope: QuerySet[Any], model: type[Model], using: str
) -> tuple[set[Any], set[Any], bool]:
    # The runs themselves may be among the keys twice.
    limit = settings.MAX_TREE + 2 * MAX_RUN_IDS + 1
    reached, pks = trees.read_closure(scope, model, using, limit)
    is_complete = len(pks - reached) <= settings.MAX_TREE
    return reached, pks if is_complete else reached, is_complete


def write_decision(
    decision: Decision, record: Cancellation, model: type[Model], using: str, *, is_complete: bool
) -> None:
    """Write what was decided of locked runs, and announce it once the transaction commits.

    Args:
        decision: What is to happen.
        record: The record of the request.
        model: The run model.
        using: Alias of the database.
        is_complete: Whether the descendants are among the rows; otherwise delivery workers find
            them.
    """
    if decision.changed:
        writes.write_cancelled(model, [row.pk for row in decision.changed], record.pk, using)
        if settings.LISTEN:
            writes.notify(using)
        _announce_after_commit(model, decision.changed, record, using)
    untold = force_deliveries(decision.forced, using) if decision.forced else []
    write_items(decision.items, decision.changed, untold, record, using)
    if decision.roots and not is_complete:
        parents = (row.run_id for row in decision.roots)
        write_chunks(record, ChunkKind.CHILDREN, parents, using)


def write_chunks(
    record: Cancellation,
    kind: ChunkKind,
    run_ids: Iterable[str],
    using: str,
    hidden: frozenset[str] = frozenset(),
) -> int:
    """Write chunks of these runs for delivery workers, and return the number of runs."""
    rows = (
        CancellationChunk(
            cancellation=record,
            kind=kind,
            run_ids=part,
            hidden_ids=[run_id for run_id in part if run_id in hidden],
            size=len(part),
            advanced_at=DatabaseNow(),
        )
        for part in chunks(run_ids, CHUNK_SIZE)
    )
    total = 0
    for some in chunks(rows, CHUNKS_AT_ONCE):  # a million ids are not held in memory
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
        # send_robust() logs what receivers raise.
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
