"""Bulk cancellations: of any number of runs, which delivery workers cancel in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import router, transaction
from django.db.models import Max, QuerySet

from django_run_cancel.cancellation.arguments import (
    MAX_RUN_ID_LENGTH,
    MAX_RUN_IDS,
    record_fields,
    unique_ids,
)
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.records import insert_record, recorded_id
from django_run_cancel.cancellation.results import CancelResult
from django_run_cancel.cancellation.service import cancel_runs, check_commits
from django_run_cancel.cancellation.transaction import write_chunks
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.retry import retry_transaction
from django_run_cancel.db.statements import chunks
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.models import Cancellation, CancellationChunk, get_run_model
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import (
    ACTIVE,
    UNSETTLED,
    CancellationState,
    ChunkKind,
    ChunkState,
    Source,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

PREVIEW_LIMIT = 10_000
"""Runs that a preview counts; of more it says that there are more."""

SAMPLE_SIZE = 20
"""Runs of which a preview says what would happen."""


class BulkCancellation(NamedTuple):
    """What ``start_bulk_cancellation`` returns.

    Attributes:
        cancellation: The record.
        is_replay: Whether it is that of an earlier call with the same idempotency key.
    """

    cancellation: Cancellation
    is_replay: bool


@dataclass(frozen=True)
class Preview:
    """What a bulk cancellation would do.

    Attributes:
        count: Number of runs, at most ``PREVIEW_LIMIT``.
        is_capped: Whether there are more.
        sample: What would happen to the first of them, and to their descendants.
    """

    count: int
    is_capped: bool
    sample: CancelResult


def start_bulk_cancellation(
    runs: QuerySet[Any],
    *,
    run_ids: Iterable[str] | None = None,
    selection: Mapping[str, Any] | None = None,
    requested_by: str | AbstractBaseUser | AnonymousUser,
    tenant: str | None = None,
    source: str = Source.PYTHON,
    origin: Origin = Origin(),  # noqa: B008 - immutable
    reason: str = "",
    force: bool = False,
    idempotency_key: str | None = None,
) -> BulkCancellation:
    """Record which runs are to be cancelled; delivery workers cancel them and their descendants.

    The selection is frozen: a run that is created later is cancelled only as a descendant.

    Args:
        runs: Without ids, of these the active ones are selected. With ids, these are the runs that
            the caller may touch.
        run_ids: Public ids, any number. Repeated ids count once. Each is answered by an item.
        selection: What was asked for, as JSON values: for the record, and for the idempotency key.
        requested_by: As for ``cancel_runs``; so are the arguments below.
        tenant: Whose record it is.
        source: Where from, one of ``Source``.
        origin: Where from more exactly.
        reason: Why, for people.
        force: Executors may kill at once what has started.
        idempotency_key: Makes a repeated call return the first call's record.

    Returns:
        The record, ``pending``, or ``completed`` when there is nothing to do.

    Raises:
        TypeError: ``run_ids`` is a single string, or holds something else than strings.
        ValueError: An argument is too long, blank or cannot be stored.
        IdempotencyKeyReused: The key was used before, for another request.
        ImproperlyConfigured: The database has ``AUTOCOMMIT = False``.
    """
    ids = None if run_ids is None else unique_ids(run_ids)
    about = dict(selection or {})
    fields = record_fields(
        [about, ids],
        requested_by=requested_by,
        tenant=tenant,
        source=source,
        origin=origin,
        reason=reason,
        force=force,
        idempotency_key=idempotency_key,
    )
    if ids is not None:
        about["run_ids"] = len(ids)
    using = router.db_for_write(get_run_model())
    check_commits(using)
    record = Cancellation(**fields, state=CancellationState.PENDING, selection=about)
    earlier = retry_transaction(partial(_start, runs.using(using), ids, record, using), using)
    if earlier is None:
        return BulkCancellation(record, is_replay=False)
    if earlier.request_digest != record.request_digest:
        raise IdempotencyKeyReused(record.idempotency_key or "")
    return BulkCancellation(earlier, is_replay=True)


def _start(
    runs: QuerySet[Any],
    ids: list[str] | None,
    record: Cancellation,
    using: str,
    restartable: bool,
) -> Cancellation | None:
    with transaction.atomic(using=using, savepoint=False):
        earlier = insert_record(record, using, restartable)
        if earlier is not None:
            return earlier
        if ids is None:
            total = write_chunks(record, ChunkKind.REQUESTED, selected_ids(runs), using)
        else:
            hidden = frozenset(_hidden_ids(runs, ids))
            shown = (recorded_id(run_id) for run_id in ids)
            total = write_chunks(record, ChunkKind.REQUESTED, shown, using, hidden)
        record.total_count = total
        if not total:
            record.state = CancellationState.COMPLETED
        # Not save(): receivers of the host's are not part of it.
        Cancellation.objects.using(using).filter(pk=record.pk).update(
            total_count=record.total_count, state=record.state
        )
    return None


def preview_bulk_cancellation(
    runs: QuerySet[Any],
    *,
    run_ids: Iterable[str] | None = None,
    requested_by: str | AbstractBaseUser | AnonymousUser,
    force: bool = False,
) -> Preview:
    """Return what ``start_bulk_cancellation`` would do, by the same code, without writing.

    Args:
        runs: As for ``start_bulk_cancellation``; so are the other arguments.
        run_ids: Public ids.
        requested_by: Who asks.
        force: Whether executors may kill at once.
    """
    if run_ids is None:
        active = runs.filter(status__in=ACTIVE)
        count = active.order_by()[: PREVIEW_LIMIT + 1].count()
        first = list(islice(selected_ids(active, SAMPLE_SIZE), SAMPLE_SIZE)) if count else []
    else:
        ids = unique_ids(run_ids)
        count, first = len(ids), ids[:SAMPLE_SIZE]
    sample = cancel_runs(first, runs=runs, requested_by=requested_by, force=force, dry_run=True)
    return Preview(min(count, PREVIEW_LIMIT), count > PREVIEW_LIMIT, sample)


def abort_bulk_cancellation(record: Cancellation) -> bool:
    """Cancel no more of the runs that were asked for; those that are cancelled stay so.

    What is below a cancelled run is still cancelled. Waits for a chunk that is being cancelled.

    Returns:
        Whether there was anything left to abort.
    """
    using = router.db_for_write(Cancellation)
    pending = CancellationChunk.objects.using(using).filter(
        cancellation=record, kind=ChunkKind.REQUESTED, state=ChunkState.PENDING
    )
    with transaction.atomic(using=using):
        # In the order of keys, as there may be several who abort.
        chunk_pks = list(pending.order_by("pk").select_for_update().values_list("pk", flat=True))
        aborted = pending.filter(pk__in=chunk_pks).update(
            state=ChunkState.ABORTED, run_ids=[], hidden_ids=[]
        )
        if aborted:
            Cancellation.objects.using(using).filter(pk=record.pk, state__in=UNSETTLED).update(
                state=CancellationState.ABORTED, finished_at=DatabaseNow()
            )
    record.refresh_from_db(using=using)
    return bool(aborted)


def retry_bulk_cancellation(record: Cancellation) -> int:
    """Try again to cancel the runs that could not be written.

    Returns:
        How many chunks are due again.
    """
    using = router.db_for_write(Cancellation)
    failed = CancellationChunk.objects.using(using).filter(
        cancellation=record, state=ChunkState.FAILED
    )
    with transaction.atomic(using=using):
        again = failed.update(
            state=ChunkState.PENDING, attempts=0, failed_count=0, advanced_at=DatabaseNow()
        )
        if again:
            Cancellation.objects.using(using).filter(
                pk=record.pk, state=CancellationState.FAILED
            ).update(state=CancellationState.RUNNING, finished_at=None)
    record.refresh_from_db(using=using)
    return again


def _hidden_ids(runs: QuerySet[Any], ids: list[str]) -> Iterator[str]:
    """Yield, as they are recorded, the ids that are unknown or out of reach."""
    for part in chunks(ids, MAX_RUN_IDS):
        possible = [run_id for run_id in part if is_storable(run_id, MAX_RUN_ID_LENGTH)]
        found = set(runs.filter(run_id__in=possible).values_list("run_id", flat=True))
        yield from (recorded_id(run_id) for run_id in part if run_id not in found)


def selected_ids(runs: QuerySet[Any], size: int = 10_000) -> Iterator[str]:
    """Yield the ids of the active ones among runs, in the order of their keys.

    Args:
        runs: The runs.
        size: How many to read at a time.
    """
    # Whatever the clocks of the hosts say that create runs.
    newest = runs.model._base_manager.using(runs.db).aggregate(newest=Max("created_at"))["newest"]
    if newest is None:  # there are no runs at all
        return
    rest = runs.filter(status__in=ACTIVE, created_at__lte=newest).order_by("pk")
    rows = list(rest.values_list("pk", "run_id")[:size])
    while rows:
        yield from (run_id for _, run_id in rows)
        rows = list(rest.filter(pk__gt=rows[-1][0]).values_list("pk", "run_id")[:size])
