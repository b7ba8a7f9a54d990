"""Bulk cancellations: record any number of runs, which delivery workers cancel in chunks."""

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
    check_scope,
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
"""Maximum number of runs that a preview counts."""

SAMPLE_SIZE = 20
"""Number of runs in the sample of a preview."""


class BulkCancellation(NamedTuple):
    """Result of ``start_bulk_cancellation``.

    Attributes:
        cancellation: The Cancellation in the database.
        is_replay: Whether an earlier call with the same idempotency key created it.
    """

    cancellation: Cancellation
    is_replay: bool


@dataclass(frozen=True)
class Preview:
    """Result of ``preview_bulk_cancellation``.

    Attributes:
        count: Number of runs, at most ``PREVIEW_LIMIT``.
        is_capped: Whether there are more runs than ``PREVIEW_LIMIT``.
        sample: Result of a dry run for the first ``SAMPLE_SIZE`` runs and their descendants.
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
    """Record a list of runs; delivery workers then cancel them and their active descendants.

    The list is fixed now: a run that is created later is cancelled only if it is a descendant.

    Args:
        runs: If ``run_ids`` is None, the active runs of this queryset are cancelled. Otherwise, it
            contains the runs that the caller may cancel.
        run_ids: Any number of public ids; duplicates are ignored. Each gets an item.
        selection: The request as JSON values, for the Cancellation and the idempotency key.
        requested_by: This and the other arguments are as for ``cancel_runs``.
        tenant: Tenant of the Cancellation.
        source: One of ``Source``.
        origin: The HTTP request, if any.
        reason: Reason, for users.
        force: Whether executors may kill started work at once.
        idempotency_key: A repeated call with the same key returns the first call's Cancellation.

    Returns:
        The Cancellation with the state ``pending``, or ``completed`` if there are no runs.

    Raises:
        TypeError: ``run_ids`` is a single string, or an element is not a string; or ``runs`` is
            of a model that is not the run model.
        ValueError: An argument is too long, blank or cannot be stored.
        IdempotencyKeyReused: The key was used before with a different request.
        ImproperlyConfigured: The database has ``AUTOCOMMIT = False``.
    """
    model = get_run_model()
    check_scope(runs, model)
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
    using = router.db_for_write(model)
    check_commits(using)
    record = Cancellation(**fields, selection=about)
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
        record.state = CancellationState.PENDING  # an earlier try may have changed it
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
        # update() instead of save(), which would call the host's signal receivers.
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
    """Return what ``start_bulk_cancellation`` would do, without writing.

    Args:
        runs: As for ``start_bulk_cancellation``.
        run_ids: Any number of public ids, or None.
        requested_by: The user, or a label.
        force: Whether executors may kill started work at once.
    """
    if run_ids is None:
        active = runs.filter(status__in=ACTIVE)
        count = _rows_once(active)[: PREVIEW_LIMIT + 1].count()
        first = list(islice(selected_ids(active, SAMPLE_SIZE), SAMPLE_SIZE)) if count else []
    else:
        ids = unique_ids(run_ids)
        count, first = len(ids), ids[:SAMPLE_SIZE]
    sample = cancel_runs(first, runs=runs, requested_by=requested_by, force=force, dry_run=True)
    return Preview(min(count, PREVIEW_LIMIT), count > PREVIEW_LIMIT, sample)


def abort_bulk_cancellation(record: Cancellation) -> bool:
    """Stop a bulk cancellation; runs that are already cancelled stay cancelled.

    Workers still cancel the descendants of cancelled runs. The call waits for locks of chunks that
    workers are processing.

    Returns:
        True if there were pending chunks to abort.
    """
    using = router.db_for_write(Cancellation)
    pending = CancellationChunk.objects.using(using).filter(
        cancellation=record, kind=ChunkKind.REQUESTED, state=ChunkState.PENDING
    )
    with transaction.atomic(using=using):
        # Lock in the order of primary keys, so that concurrent calls cannot deadlock.
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
    """Set the failed chunks of a bulk cancellation to pending, so that workers retry them.

    Returns:
        Number of these chunks.
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
    """Yield the ids that are not in the queryset, as ``recorded_id`` stores them."""
    for part in chunks(ids, MAX_RUN_IDS):
        possible = [run_id for run_id in part if is_storable(run_id, MAX_RUN_ID_LENGTH)]
        found = set(runs.filter(run_id__in=possible).values_list("run_id", flat=True))
        yield from (recorded_id(run_id) for run_id in part if run_id not in found)


def selected_ids(runs: QuerySet[Any], size: int = 10_000) -> Iterator[str]:
    """Yield the ids of active runs, in the order of their primary keys.

    Args:
        runs: The runs.
        size: Number of rows to read in one query.
    """
    # Exclude runs that are created from now on. ``created_at`` comes from the clocks of the hosts,
    # so compare with the latest one, not with the current time.
    newest = runs.model._base_manager.using(runs.db).aggregate(newest=Max("created_at"))["newest"]
    if newest is None:  # there are no runs at all
        return
    rest = runs.filter(status__in=ACTIVE, created_at__lte=newest).order_by("pk")
    rest.query.select_for_update = False
    rows = list(rest.values_list("pk", "run_id")[:size])
    while rows:
        yield from dict(rows).values()  # each once, even if a join repeats it
        rows = list(rest.filter(pk__gt=rows[-1][0]).values_list("pk", "run_id")[:size])


def _rows_once(runs: QuerySet[Any]) -> QuerySet[Any]:
    """Return unordered rows, each once, even if a join repeats it.

    Without joins there is no DISTINCT, for which the database could read all rows.
    """
    rows = runs.order_by()
    return rows.values("pk").distinct() if len(rows.query.alias_map) > 1 else rows
