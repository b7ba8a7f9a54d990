"""Processes the chunks of bulk cancellations: each step cancels some runs in one transaction."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError, connections, router, transaction
from django.db.models import F, Q, QuerySet, Sum

from django_run_cancel.cancellation.decision import decide, decide_cascade
from django_run_cancel.cancellation.progress import COUNTS
from django_run_cancel.cancellation.records import counts_of
from django_run_cancel.cancellation.transaction import lock_trees, write_chunks, write_decision
from django_run_cancel.conf import settings
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.locks import LockedRun, is_refusal, limit_lock_waits
from django_run_cancel.db.retry import retry_transaction
from django_run_cancel.db.sessions import in_transaction
from django_run_cancel.db.trees import keys_of_ids, read_distinct
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from django_run_cancel.safe_text import describe_error, printable_lines
from django_run_cancel.states import (
    SUCCESSFUL,
    UNSETTLED,
    CancellationState,
    ChunkKind,
    ChunkState,
    Via,
)

logger = logging.getLogger("django_run_cancel")

MAX_CANCELLATIONS = 100
"""Maximum number of bulk cancellations that a process reads at once."""

ROTATION_SECONDS = 1.0
"""After which a process looks for cancellations that have come in."""

MAX_CHILDREN = 10_000
"""Maximum number of children read in one transaction, which locks no runs."""

AIM = 0.4
"""Part of ``RUN_CANCEL_MAX_LOCK_MS`` that a transaction is to take.

Some take twice as long as those before them, for example while the database writes a checkpoint.
"""

MAX_ERROR_LENGTH = 1_000
LONGEST_WAIT_SECONDS = 60


class Pace:
    """Adapts the number of runs in one transaction to ``RUN_CANCEL_MAX_LOCK_MS``.

    Attributes:
        size: Number of runs to cancel in the next transaction.
    """

    def __init__(self) -> None:
        self.size = 100

    def halve(self) -> None:
        """Halve the size, after an error: a timeout may be shorter than the transaction."""
        self.size = max(1, self.size // 2)

    def adapt(self, count: int, seconds: float) -> None:
        """Adapt the size to the duration of a transaction.

        Args:
            count: Number of runs that the transaction has processed, without descendants.
            seconds: Its duration.
        """
        aim = AIM * settings.MAX_LOCK_MS / 1_000
        fitting = count * aim / max(seconds, 0.0001)
        # The few runs at the end of a chunk can tell only that so many take too long.
        if count >= self.size or seconds >= aim:
            self.size = max(1, min(int(fitting), 2 * self.size))


_pace = Pace()


def advance_bulk_cancellations(seconds: float, among: QuerySet[Cancellation] | None = None) -> int:
    """Advance all bulk cancellations in turn, until the time is up or no chunk is due.

    Any number of processes may call this concurrently.

    Args:
        seconds: Time after which no further transaction starts.
        among: The cancellations to advance; all if None.

    Returns:
        Number of processed runs.
    """
    until = time.monotonic() + seconds
    dealt_with = 0
    while found := _take_turns(_pending_cancellations(among), until):
        dealt_with += found
        if time.monotonic() > until:
            break
    return dealt_with


def _take_turns(pending: list[int], until: float) -> int:
    """Advance a chunk of each cancellation in turn, for ``ROTATION_SECONDS``."""
    dealt_with = 0
    look_again = time.monotonic() + ROTATION_SECONDS
    while pending:
        for pk in list(pending):
            done = advance_chunk(pk)
            dealt_with += done
            if not done:
                pending.remove(pk)
            if time.monotonic() > until:
                return dealt_with
        if time.monotonic() > look_again:
            break
    return dealt_with


def _pending_cancellations(among: QuerySet[Cancellation] | None) -> list[int]:
    using = _database()
    if among is not None:
        return list(among.using(using).order_by("pk").values_list("pk", flat=True))
    chunks = CancellationChunk.objects.using(using).filter(state=ChunkState.PENDING)
    pending = read_distinct(chunks, "cancellation_id", MAX_CANCELLATIONS)
    # Cancellations without pending chunks, whose worker died before it could settle them.
    unsettled = Cancellation.objects.using(using).filter(state__in=UNSETTLED)
    done = unsettled.exclude(pk__in=pending).values_list("pk", flat=True)[:MAX_CANCELLATIONS]
    return [*pending, *done]


def advance_chunk(cancellation_pk: int) -> int:
    """Process some runs of a cancellation, in one transaction.

    Returns:
        Number of processed runs; 0 if no chunk is due, or other processes have locked all of them.
    """
    using = _database()
    chunks = CancellationChunk.objects.using(using).filter(
        Q(next_attempt_at=None) | Q(next_attempt_at__lte=DatabaseNow()),
        cancellation=cancellation_pk,
        state=ChunkState.PENDING,
    )
    count = _pace.size
    while True:
        started = time.monotonic()
        try:
            done = retry_transaction(partial(_advance, chunks, count), using)
        except DatabaseError as error:
            if in_transaction(using):
                raise
            if is_refusal(error) and count > 1:
                count //= 2  # until the transaction has only the refused row
                continue
            if not is_refusal(error):
                _pace.halve()
            return _put_off(chunks, error)
        if not done:
            _settle(cancellation_pk, using)
            return 0
        _pace.adapt(done, time.monotonic() - started)
        return done


def _advance(chunks: QuerySet[CancellationChunk], count: int, restartable: bool) -> int:
    is_outermost = not in_transaction(chunks.db)
    with transaction.atomic(using=chunks.db, savepoint=False):
        if is_outermost:  # a transaction of the caller has limits of its own
            limit_lock_waits(chunks.db)
        chunk = _claim(chunks)
        if chunk is None:
            return 0
        if chunk.kind == ChunkKind.CHILDREN:
            return _find_children(chunk, chunks.db)
        return _cancel_next(chunk, count, chunks.db, restartable)


def _claim(chunks: QuerySet[CancellationChunk]) -> CancellationChunk | None:
    """Lock and return the first chunk that no other process has locked."""
    if connections[chunks.db].features.has_select_for_update_skip_locked:
        return chunks.order_by("pk").select_for_update(skip_locked=True).first()
    # SQLite: an UPDATE, even of no row, locks the database until the transaction ends.
    CancellationChunk.objects.using(chunks.db).filter(pk=0).update(attempts=0)
    return chunks.order_by("pk").first()


def _cancel_next(chunk: CancellationChunk, count: int, using: str, restartable: bool) -> int:
    model = get_run_model()
    records = Cancellation.objects.using(using)
    record = records.get(pk=chunk.cancellation_id)
    if record.state == CancellationState.PENDING:
        waiting = records.filter(pk=record.pk, state=CancellationState.PENDING)
        waiting.update(state=CancellationState.RUNNING)
    run_ids = chunk.run_ids[chunk.position : chunk.position + count]
    reachable = sorted(set(run_ids).difference(chunk.hidden_ids))
    tree = lock_trees(keys_of_ids(model, reachable, using), model, using, restartable)
    if chunk.kind == ChunkKind.CASCADE:
        roots = [row for row in tree.rows if row.pk in tree.reached]
        if not tree.is_complete:
            roots = _not_requested(roots, record, using)
        decision = decide_cascade(tree.rows, roots, force=record.force)
    else:
        decision = decide(run_ids, tree.reached, tree.rows, force=record.force)
    write_decision(decision, tree, record, model, using)
    _record_step(chunk, len(run_ids), using, **counts_of(decision.items))
    return len(run_ids)


def _not_requested(rows: list[LockedRun], record: Cancellation, using: str) -> list[LockedRun]:
    """Return the rows without those of requested runs, which have been cancelled on their own.

    The search for their descendants has begun then. If parents form a cycle, it comes to them again
    and would not end.
    """
    requested = CancellationItem.objects.using(using).filter(
        cancellation=record,
        via=Via.REQUESTED,
        outcome__in=SUCCESSFUL,
        run_id__in=[row.run_id for row in rows],
    )
    found = set(requested.values_list("run_id", flat=True))
    return [row for row in rows if row.run_id not in found]


def _find_children(chunk: CancellationChunk, using: str) -> int:
    """Write chunks for the children of this chunk's runs.

    The runs are cancelled, so nobody can add a child any more.
    """
    model = get_run_model()
    runs: Any = model._base_manager.using(using)
    parents = runs.filter(run_id__in=chunk.run_ids).values_list("pk", flat=True)
    children = runs.filter(parent__in=list(parents))  # with a join, PostgreSQL scans the table
    if chunk.after_key:
        children = children.filter(pk__gt=model._meta.pk.to_python(chunk.after_key))
    rows = list(children.order_by("pk").values_list("pk", "run_id")[:MAX_CHILDREN])
    record = Cancellation(pk=chunk.cancellation_id)
    write_chunks(record, ChunkKind.CASCADE, (run_id for _, run_id in rows), using)
    is_last = len(rows) < MAX_CHILDREN
    after_key = str(rows[-1][0]) if rows else ""
    _record_step(chunk, chunk.size if is_last else 0, using, after_key=after_key)
    return max(len(rows), 1)


def _record_step(chunk: CancellationChunk, done: int, using: str, **values: Any) -> None:
    position = chunk.position + done
    if position >= chunk.size:
        values |= {"state": ChunkState.COMPLETED, "run_ids": [], "hidden_ids": []}
    for name in COUNTS:
        if name in values:
            values[name] += getattr(chunk, name)
    CancellationChunk.objects.using(using).filter(pk=chunk.pk).update(
        position=position,
        advanced_at=DatabaseNow(),
        attempts=0,
        next_attempt_at=None,
        last_error="",
        **values,
    )


def _put_off(chunks: QuerySet[CancellationChunk], error: DatabaseError) -> int:
    """Move a run that the database refuses to a failed chunk; after other errors, retry later."""
    reason = describe_error(error, MAX_ERROR_LENGTH)
    with transaction.atomic(using=chunks.db):
        chunk = _claim(chunks)
        if chunk is None:
            return 0
        rows = CancellationChunk.objects.using(chunks.db)
        logger.warning("A bulk cancellation cannot go on: %s", printable_lines(reason))
        if not is_refusal(error):
            wait = timedelta(seconds=min(2**chunk.attempts, LONGEST_WAIT_SECONDS))
            rows.filter(pk=chunk.pk).update(
                attempts=F("attempts") + 1,
                next_attempt_at=DatabaseNow() + wait,
                last_error=reason,
            )
            return 0
        refused = chunk.run_ids[chunk.position : chunk.position + 1]
        rows.create(
            cancellation_id=chunk.cancellation_id,
            kind=chunk.kind,
            state=ChunkState.FAILED,
            run_ids=refused,
            hidden_ids=[run_id for run_id in refused if run_id in chunk.hidden_ids],
            size=1,
            failed_count=int(chunk.kind == ChunkKind.REQUESTED),
            last_error=reason,
        )
        _record_step(chunk, 1, chunks.db)
        return 1


def _settle(cancellation_pk: int, using: str) -> None:
    """Set the final state and counts of a cancellation that has no pending chunks."""
    chunks = CancellationChunk.objects.using(using).filter(cancellation=cancellation_pk)
    record = Cancellation.objects.using(using).filter(pk=cancellation_pk)
    with transaction.atomic(using=using):
        unsettled = record.select_for_update().filter(state__in=UNSETTLED)
        pending = chunks.filter(state=ChunkState.PENDING)
        # Twice: until the record is locked, a failed chunk may become pending.
        if pending.exists() or not unsettled.exists() or pending.exists():
            return
        # Failed chunks keep their counts, as they can be retried.
        done = chunks.exclude(state=ChunkState.FAILED)
        sums = done.aggregate(**{name: Sum(name, default=0) for name in COUNTS})
        done.update(**dict.fromkeys(COUNTS, 0))
        failed = chunks.filter(state=ChunkState.FAILED).exists()
        record.update(
            state=CancellationState.FAILED if failed else CancellationState.COMPLETED,
            finished_at=DatabaseNow(),
            **{name: F(name) + count for name, count in sums.items()},
        )


def _database() -> str:
    return router.db_for_write(Cancellation)
