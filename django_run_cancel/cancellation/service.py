"""``cancel_runs``: locks the runs, decides what happens to each, and writes, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router, transaction
from django.db.models import QuerySet

from django_run_cancel.cancellation.arguments import MAX_RUN_ID_LENGTH, checked_ids, record_fields
from django_run_cancel.cancellation.decision import decide
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.records import insert_record, new_record
from django_run_cancel.cancellation.results import CancelResult, replay, result_of
from django_run_cancel.cancellation.transaction import lock_trees, read_trees, write_decision
from django_run_cancel.db.retry import retry_transaction
from django_run_cancel.models import Cancellation, get_run_model
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import CancellationState, Source

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser


def cancel_runs(
    run_ids: Iterable[str],
    *,
    runs: QuerySet[Any] | None = None,
    requested_by: str | AbstractBaseUser | AnonymousUser,
    tenant: str | None = None,
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
        requested_by: Who asks: a user, or a label of up to 255 characters.
        tenant: Whose record it is; by default the tenant of the runs, if it is a single one.
        source: Where from, one of ``Source``.
        origin: Where from more exactly: the HTTP request, when there is one.
        reason: Why, for people; up to 2,000 characters.
        force: Executors may kill at once what has started. Asked of runs that were cancelled
            before and are still ``stopping``, it is told to their executors now.
        dry_run: Decide, but lock and write nothing.
        idempotency_key: Makes a repeated call give the first call's answer. Belongs to the
            requester.

    Returns:
        What happened to each run. One that is unknown, out of reach or finished is no error, it
        is in ``failed``.

    Raises:
        TypeError: ``run_ids`` is a single string, or holds something else than strings.
        ValueError: An argument is too long, blank or cannot be stored.
        ImproperlyConfigured: The database has ``AUTOCOMMIT = False``.
        IdempotencyKeyReused: The key was used before, for another request.
        OperationalError: The database is locked or away. Nothing has been written, and a
            transaction of the caller's can only be rolled back.
    """
    asked = checked_ids(run_ids)
    fields = record_fields(
        asked,
        requested_by=requested_by,
        tenant=tenant,
        source=source,
        origin=origin,
        reason=reason,
        force=force,
        idempotency_key=idempotency_key,
    )
    if not asked:
        return CancelResult(None, [], [], [])
    model = get_run_model()
    using = router.db_for_write(model)
    check_commits(using)
    scope = model._base_manager.all() if runs is None else runs
    # An id that no run can have is not even looked for.
    possible = [run_id for run_id in asked if is_storable(run_id, MAX_RUN_ID_LENGTH)]
    scope = scope.using(using).filter(run_id__in=possible)
    if dry_run:
        tree = read_trees(scope, model, using)
        decision = decide(asked, tree.reached, tree.rows, force=force)
        postponed = [] if tree.is_complete else decision.roots
        return result_of(None, decision.items, decision.forced, postponed)
    outcome = retry_transaction(partial(_cancel, scope, using, asked, fields), using)
    return replay(outcome, asked, fields) if isinstance(outcome, Cancellation) else outcome


def check_commits(using: str) -> None:
    """Refuse a database that stores nothing without a commit by somebody.

    Raises:
        ImproperlyConfigured: It has ``AUTOCOMMIT = False``.
    """
    if connections[using].settings_dict.get("AUTOCOMMIT") is False:
        raise ImproperlyConfigured(
            f"DATABASES[{using!r}] has AUTOCOMMIT = False: nobody would commit what is cancelled."
        )


def _cancel(
    scope: QuerySet[Any], using: str, asked: list[str], fields: dict[str, Any], restartable: bool
) -> CancelResult | Cancellation:
    """Cancel, and return the result, or the earlier record with the same idempotency key.

    No savepoint: when a caller's transaction is joined and the database fails us, all of it is
    undone, never half.
    """
    model = get_run_model()
    with transaction.atomic(using=using, savepoint=False):
        tree = lock_trees(scope, model, using, restartable)
        decision = decide(asked, tree.reached, tree.rows, force=fields["force"])
        record = new_record(decision.items, {"tenant": decision.tenant, **fields})
        postponed = [] if tree.is_complete else decision.roots
        if postponed:
            record.state = CancellationState.RUNNING
        earlier = insert_record(record, using, restartable)
        if earlier is not None:
            return earlier
        write_decision(decision, record, model, using, is_complete=tree.is_complete)
    return result_of(record, decision.items, decision.forced, postponed)
