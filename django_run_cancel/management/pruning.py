"""Deletion of old cancellations and runs, in batches that are locked in the order of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from django_run_cancel.db.batches import BATCH_SIZE, batches
from django_run_cancel.db.clock import database_now
from django_run_cancel.db.locks import is_refusal, lock_rows, skip_refused_rows
from django_run_cancel.db.retry import retry_transaction
from django_run_cancel.db.statements import chunks
from django_run_cancel.delivery import outbox
from django_run_cancel.models import Cancellation, CancellationChunk, CancellationItem, run_rows
from django_run_cancel.states import TERMINAL, ChunkState, Delivery, StopState

_UNFINISHED = (
    Q(delivery__in=[Delivery.PENDING, Delivery.FAILED])
    | Q(handling__in=[Delivery.PENDING, Delivery.FAILED])
    | Q(escalates_at__isnull=False)
)
"""Items of which an executor must be told yet, or for which a handler must be called."""


def old_cancellations(age: timedelta) -> QuerySet[Cancellation]:
    """Return the records that are older than this and have nothing left to do."""
    using = outbox.database()
    unfinished = CancellationItem.objects.filter(_UNFINISHED, cancellation=OuterRef("pk"))
    pending = CancellationChunk.objects.filter(
        cancellation=OuterRef("pk"), state=ChunkState.PENDING
    )
    return Cancellation.objects.using(using).filter(
        ~Exists(unfinished), ~Exists(pending), requested_at__lt=database_now(using) - age
    )


def delete_cancellations(old: QuerySet[Cancellation]) -> Iterator[int]:
    """Delete records with their items, and yield how many each batch had."""
    for keys in batches(old, "requested_at", size=100):
        rows = run_rows(cancellation__in=keys).values_list("pk", flat=True)
        for runs in chunks(sorted(rows), BATCH_SIZE):
            retry_transaction(partial(_forget_cancellation, runs, keys), old.db)
        yield _delete(keys, _delete_cancellations, "Cancellation", old.db)


def _forget_cancellation(runs: list[Any], keys: list[Any], restartable: bool) -> None:
    rows = run_rows(pk__in=runs, cancellation__in=keys)
    with transaction.atomic(using=rows.db):
        lock_rows(rows)
        rows.update(cancellation=None)


def _delete_cancellations(keys: list[Any], restartable: bool) -> int:
    using = outbox.database()
    with transaction.atomic(using=using):
        lock_rows(outbox.items().filter(cancellation__in=keys))
        _, counts = Cancellation.objects.using(using).filter(pk__in=keys).delete()
    return counts.get(Cancellation._meta.label, 0)


def old_runs(age: timedelta) -> QuerySet[Any]:
    """Return the runs that ended longer ago than this and have no unfinished item.

    Among them are runs above one that is younger or has not ended; ``delete_runs`` keeps these.
    """
    rows = run_rows(status__in=TERMINAL)
    before = database_now(rows.db) - age
    unfinished = CancellationItem.objects.filter(_UNFINISHED, run_id=OuterRef("run_id"))
    return rows.filter(
        Q(finished_at__lt=before) | Q(finished_at=None),
        ~Exists(unfinished),
        created_at__lt=before,
    ).exclude(stop_state=StopState.STOPPING)


def delete_runs(old: QuerySet[Any]) -> Iterator[int]:
    """Delete runs that have no children but such as are deleted too; yield the size of batches.

    Children are usually created after their parents, so the youngest go first. What is above a run
    that was created earlier goes at the next pass.
    """
    deleted = True
    while deleted:
        deleted = False
        for keys in batches(old, "created_at", descending=True):
            count = _delete(keys, partial(_delete_runs, old), "Run", old.db)
            deleted = deleted or bool(count)
            yield count


def _delete_runs(old: QuerySet[Any], keys: list[Any], restartable: bool) -> int:
    with transaction.atomic(using=old.db):
        # Nobody can insert a child of a locked run.
        lock_rows(run_rows(pk__in=keys))
        parents = dict(old.filter(pk__in=keys).values_list("pk", "parent"))
        children = run_rows(parent__in=list(parents)).exclude(pk__in=list(parents))
        kept = list(children.values_list("parent", flat=True).distinct())
        while kept:  # and what is above them
            kept = [above for pk in kept if (above := parents.pop(pk, None)) in parents]
        rows = run_rows(pk__in=list(parents))
        rows.filter(parent__in=list(parents)).update(parent=None)  # spares the ORM the recursion
        rows.delete()
    return len(parents)


def _delete(
    keys: list[Any], transact: Callable[[list[Any], bool], int], label: str, using: str
) -> int:
    """Delete a batch, or one at a time what the host protects or a trigger refuses to delete."""
    try:
        return retry_transaction(partial(transact, keys), using)
    except DatabaseError as error:
        if not is_refusal(error):
            raise
    count = 0
    for key in keys:
        with skip_refused_rows(f"{label} {key}"):
            count += retry_transaction(partial(transact, [key]), using)
    return count
