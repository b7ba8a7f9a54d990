"""Cancelling: the one function that endpoint, admin, command and host code all call."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, OperationalError, connections, router, transaction
from django.db.models import Model, QuerySet
from django.utils import timezone

from django_run_cancel import signals, sql
from django_run_cancel.conf import settings
from django_run_cancel.decision import Item, decide
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.ids import is_storable
from django_run_cancel.models import ApiKey, Cancellation, CancellationItem, get_run_model
from django_run_cancel.origin import Origin
from django_run_cancel.sql import LockedRun
from django_run_cancel.states import SUCCESSFUL, Delivery, Outcome, Source, StopState, Via

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

MAX_RUN_IDS = 1_000
"""Ids per call: more would hold locks for longer than other clients should wait."""

MAX_REASON_LENGTH = 2_000
MAX_LABEL_LENGTH = 255
MAX_RUN_ID_LENGTH = 64

MAX_ATTEMPTS = 5
"""How often a transaction of ours is tried while the database undoes it for another's sake."""


@dataclass(frozen=True)
class CancelResult:
    """What ``cancel_runs`` did, or in a dry run would do.

    Attributes:
        cancellation: The record; None after a dry run, and when no id was given.
        cancelled: Ids that were asked for and are cancelled now, in the order asked.
        failed: Ids that were asked for and are not: finished, unknown or out of reach.
        items: What happened to each run, children included.
        is_replay: Whether this is the answer of an earlier call with the same idempotency key.
    """

    cancellation: Cancellation | None
    cancelled: list[str]
    failed: list[str]
    items: Sequence[Item]
    is_replay: bool = field(default=False, compare=False)


def cancel_runs(
    run_ids: Iterable[str],
    *,
    runs: QuerySet[Any] | None = None,
    requested_by: str | ApiKey | AbstractBaseUser,
    source: str = Source.PYTHON,
    origin: Origin = Origin(),  # noqa: B008 - immutable
    reason: str = "",
    force: bool = False,
    dry_run: bool = False,
    idempotency_key: str | None = None,
) -> CancelResult:
    """Cancel runs and their active descendants, in one transaction.

    The transaction is joined when there is one. Signals are sent after it has committed.

    Args:
        run_ids: Public ids, at most 1,000. Repeated ids count once.
        runs: The runs that the caller may touch; by default all, those included that a manager of
            the host's hides. Descendants always go with them.
        requested_by: Who asks: a user, an API key, or a label of up to 255 characters.
        source: Where from, one of ``Source``.
        origin: Where from more exactly: the HTTP request, when there is one.
        reason: Why, for people; up to 2,000 characters.
        force: Recorded for what tells the executors: they may be harsh at once.
        dry_run: Decide, but lock and write nothing.
        idempotency_key: Makes a repeated call give the first call's answer. Belongs to the
            requester.

    Returns:
        What happened to each run. One that is unknown, out of reach or finished is no error, it
        is in ``failed``.

    Raises:
        TypeError: ``run_ids`` is a single string, or holds something else than strings.
        ValueError: An argument is too long, blank or cannot be stored.
        IdempotencyKeyReused: The key was used before, for another request.
        OperationalError: The database is locked or away. Nothing has been written, and a
            transaction of the caller's can only be rolled back.
    """
    asked = _checked_ids(run_ids)
    request = _checked_request(requested_by, source, reason, force) | asdict(origin)
    if idempotency_key is not None:
        request["idempotency_key"] = _checked_text("idempotency_key", idempotency_key, 255)
        request["request_digest"] = _digest(asked, reason, force)
    if not asked:
        return CancelResult(None, [], [], [])
    model = get_run_model()
    using = router.db_for_write(model)
    scope = model._base_manager.all() if runs is None else runs
    # An id that no run can have is not even looked for.
    possible = [run_id for run_id in asked if is_storable(run_id, MAX_RUN_ID_LENGTH)]
    scope = scope.using(using).filter(run_id__in=possible)
    if dry_run:
        reached, pks = sql.read_closure(scope, model, using)
        return _result(None, decide(asked, reached, sql.read_runs(model, pks, using)).items)
    outcome = _retrying(using, partial(_cancel, scope, using, asked, request))
    return _replay(outcome, asked, request) if isinstance(outcome, Cancellation) else outcome


def _checked_ids(run_ids: Iterable[str]) -> list[str]:
    if isinstance(run_ids, str):
        raise TypeError("run_ids must be a list of ids, not a single string.")
    asked = list(dict.fromkeys(run_ids))
    for run_id in asked:
        if not isinstance(run_id, str):
            raise TypeError(f"run_ids must hold strings, not {type(run_id).__name__}.")
    if len(asked) > MAX_RUN_IDS:
        raise ValueError(f"run_ids must hold at most {MAX_RUN_IDS} ids, not {len(asked)}.")
    return asked


def _checked_request(
    requested_by: str | ApiKey | AbstractBaseUser, source: str, reason: str, force: bool
) -> dict[str, Any]:
    if not is_storable(reason, MAX_REASON_LENGTH):
        raise ValueError(
            f"reason must be text of at most {MAX_REASON_LENGTH} characters, without NUL."
        )
    request = {"source": Source(source), "reason": reason, "force": force}
    if isinstance(requested_by, str):
        label = requested_by
    elif isinstance(requested_by, ApiKey):
        label = requested_by.label
        request["tenant"] = requested_by.tenant
    else:
        label = requested_by.get_username()[:MAX_LABEL_LENGTH]
        request["user_id"] = requested_by.pk
    return {**request, "requested_by": _checked_text("requested_by", label, MAX_LABEL_LENGTH)}


def _checked_text(name: str, text: str, max_length: int) -> str:
    if not text.strip() or not is_storable(text, max_length):
        raise ValueError(
            f"{name} must be text of 1 to {max_length} characters, not blank and without NUL."
        )
    return text


def _digest(asked: list[str], reason: str, force: bool) -> str:
    return hashlib.sha256(json.dumps([asked, reason, force]).encode()).hexdigest()


class _StartOver(Exception):
    """What this transaction has seen is out of date: a new one sees it all."""


def _retrying(
    using: str, transact: Callable[[bool], CancelResult | Cancellation]
) -> CancelResult | Cancellation:
    """Run a transaction, again when it must start over or the database gave it up.

    Our own order of locks cannot deadlock; that of a host's code can. Inside a transaction of
    the caller's there is nothing to repeat: the database has undone all of it.

    Args:
        using: Alias of the database.
        transact: The transaction; it is told whether it may raise ``_StartOver``.
    """
    ours = not connections[using].in_atomic_block
    for attempt in range(1, MAX_ATTEMPTS):
        try:
            return transact(ours)
        except _StartOver:
            pass
        except OperationalError as error:
            if not (ours and _is_transient(error)):
                raise
        time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311 - only spreads retries
    return transact(False)


def _is_transient(error: OperationalError) -> bool:
    """Tell whether the database chose this transaction to end a deadlock or a stale snapshot."""
    driver_error = error.__cause__
    sqlstate = getattr(driver_error, "sqlstate", None) or getattr(driver_error, "pgcode", None)
    # MySQL and MariaDB: ER_LOCK_DEADLOCK, and ER_CHECKREAD under innodb_snapshot_isolation.
    return sqlstate in {"40P01", "40001"} or error.args[:1] in {(1213,), (1020,)}


def _cancel(
    scope: QuerySet[Any], using: str, asked: list[str], request: dict[str, Any], restartable: bool
) -> CancelResult | Cancellation:
    """Do it, and return the result, or the record that has the request's idempotency key.

    No savepoint: when a caller's transaction is joined and the database fails us, all of it is
    undone, never half.
    """
    model = get_run_model()
    with transaction.atomic(using=using, savepoint=False):
        reached, rows = _lock(scope, model, using, restartable)
        items, changed, tenant = decide(asked, reached, rows)
        record = _new_record(items, {"tenant": tenant, **request})
        try:
            guard = transaction.atomic(using=using) if record.idempotency_key else nullcontext()
            with guard:
                sql.insert(record, using)
        except IntegrityError:
            first = _first_with_key(record, using) if record.idempotency_key else None
            if first is None and record.idempotency_key and restartable:
                raise _StartOver from None  # committed after this transaction's snapshot
            if first is None:
                raise
            return first
        if changed:
            sql.write_cancelled(model, [row.pk for row in changed], record.pk, using)
            if settings.LISTEN:
                sql.notify(using)
            _announce_after_commit(model, changed, record, using)
        _write_items(items, changed, record, using)
    return _result(record, items)


def _lock(
    scope: QuerySet[Any], model: type[Model], using: str, restartable: bool
) -> tuple[set[Any], list[LockedRun]]:
    """Return the keys of the runs that were asked for, and the locked rows of their trees."""
    reached, pks = sql.read_closure(scope, model, using)
    rows = sql.lock_runs(model, pks, using)
    unseen = sql.read_children(model, pks, using) - pks
    while unseen:
        if restartable:
            # Locked now they could be out of order, and out of order there are deadlocks.
            raise _StartOver
        rows += sql.lock_runs(model, unseen, using)
        pks |= unseen
        unseen = sql.read_children(model, unseen, using) - pks
    return reached, rows


def _first_with_key(record: Cancellation, using: str) -> Cancellation | None:
    names = ("idempotency_key", "requested_by", "source")
    key = {name: getattr(record, name) for name in names}
    return Cancellation.objects.using(using).filter(**key).first()


def _new_record(items: list[Item], request: dict[str, Any]) -> Cancellation:
    requested = [item for item in items if item.via == Via.REQUESTED]
    cancelled = sum(item.outcome in SUCCESSFUL for item in requested)
    return Cancellation(
        **request,
        total_count=len(requested),
        cancelled_count=cancelled,
        failed_count=len(requested) - cancelled,
        cascaded_count=len(items) - len(requested),
    )


ITEM_FIELDS = (
    *("cancellation", "run_id", "outcome", "via", "previous_status", "backend", "external_id"),
    *("delivery", "attempts", "next_attempt_at", "last_error", "force"),
    *("handling", "handling_attempts", "next_handling_at", "handling_error"),
)


def _write_items(
    items: list[Item], changed: list[LockedRun], record: Cancellation, using: str
) -> None:
    due = connections[using].ops.adapt_datetimefield_value(timezone.now())
    rows = {row.run_id: row for row in changed}
    handled = bool(settings.HANDLERS)

    def values(item: Item) -> Sequence[Any]:
        row = rows.get(item.run_id) if item.outcome == Outcome.CANCELLED else None
        backend, external_id = (row.backend, row.external_id) if row else ("", "")
        # A run without an id there was never handed to its executor.
        told = backend and external_id
        delivery = (Delivery.PENDING, 0, due) if told else (Delivery.NOT_NEEDED, 0, None)
        what = (recorded_id(item.run_id), item.outcome, item.via, item.previous_status)
        handling = (Delivery.PENDING, 0, due) if row and handled else (Delivery.NOT_NEEDED, 0, None)
        told_how = (backend, external_id, *delivery, "", record.force)
        return (record.pk, *what, *told_how, *handling, "")

    sql.insert_rows(CancellationItem, ITEM_FIELDS, map(values, items), using)


def recorded_id(run_id: str) -> str:
    """Return an id as the record holds it: escaped and cut when no run could have it."""
    if is_storable(run_id, MAX_RUN_ID_LENGTH):
        return run_id
    return ascii(run_id)[1:-1][: MAX_RUN_ID_LENGTH - 1] + "…"


def _announce_after_commit(
    model: type[Model], changed: list[LockedRun], record: Cancellation, using: str
) -> None:
    run_ids = [row.run_id for row in changed]
    never_started = [row.run_id for row in changed if row.never_started]
    about = {"sender": model, "cancellation_id": record.cancellation_id}

    def announce() -> None:
        # send_robust() logs what receivers raise.
        for run_id in run_ids:
            signals.run_cancelled.send_robust(run_id=run_id, **about)
        signals.runs_cancelled.send_robust(run_ids=run_ids, **about)
        for run_id in never_started:
            signals.run_stopped.send_robust(
                run_id=run_id, stop_state=StopState.NEVER_STARTED.value, **about
            )

    transaction.on_commit(announce, using=using)


def _result(record: Cancellation | None, items: list[Item]) -> CancelResult:
    requested = [item for item in items if item.via == Via.REQUESTED]
    return CancelResult(
        cancellation=record,
        cancelled=[item.run_id for item in requested if item.outcome in SUCCESSFUL],
        failed=[item.run_id for item in requested if item.outcome not in SUCCESSFUL],
        items=items,
    )


def _replay(record: Cancellation, asked: list[str], request: dict[str, Any]) -> CancelResult:
    """Return what the first request with this key was answered."""
    if record.request_digest != request["request_digest"]:
        raise IdempotencyKeyReused(request["idempotency_key"])
    # Exactly the ids asked for: the record may hold some of them escaped.
    exact = iter(asked)
    items = []
    rows = CancellationItem.objects.using(record._state.db).filter(cancellation=record)
    for row in rows.order_by("pk"):
        run_id = next(exact) if row.via == Via.REQUESTED else row.run_id
        items.append(Item(run_id, Outcome(row.outcome), Via(row.via), row.previous_status))
    return replace(_result(record, items), is_replay=True)
