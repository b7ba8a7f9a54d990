"""``cancel_runs()``: locks runs, decides the outcome of each, and writes it in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router, transaction
from django.db.models import QuerySet

from django_run_cancel.cancellation.arguments import (
    MAX_RUN_ID_LENGTH,
    check_scope,
    checked_ids,
    record_fields,
)
from django_run_cancel.cancellation.decision import decide
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.records import insert_record, new_record
from django_run_cancel.cancellation.results import CancelResult, replay, result_of
from django_run_cancel.cancellation.transaction import lock_trees, read_trees, write_decision
from django_run_cancel.db.retry import retry_transaction
from django_run_cancel.db.statements import Statement
from django_run_cancel.db.trees import keys_of, keys_of_ids
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

    An open transaction is joined. Signals are sent after the commit.

    Args:
        run_ids: Public ids, at most 1,000; duplicates are ignored.
        runs: The runs that the caller may cancel; by default all, including those that the host's
            default manager hides. Their descendants are cancelled even if not in this queryset.
        requested_by: The user who asks, or a label of up to 255 characters.
        tenant: Tenant of the Cancellation; by default that of the runs, if all have the same.
        source: Interface through which the request came: one of ``Source``.
        origin: Address and id of the HTTP request, if any.
        reason: Reason, for users; up to 2,000 characters.
        force: Whether executors may kill started work at once. For runs that were cancelled before
            and are still ``stopping``, the executors get another stop request, with force.
        dry_run: Whether to return the outcome without locking or writing anything.
        idempotency_key: A repeated call with this key and the same ``requested_by`` and ``source``
            returns the first call's result.

    Returns:
        The outcome of each run. Runs that are unknown, not accessible or finished are no errors;
        they are in ``failed``.

    Raises:
        TypeError: ``run_ids`` is a single string, or an element is not a string; or ``runs`` is
            of a model that is not the run model.
        ValueError: An argument is too long, blank or cannot be stored.
        ImproperlyConfigured: The database has ``AUTOCOMMIT = False``.
        IdempotencyKeyReused: The key was used before with a different request.
        OperationalError: The database is locked or unavailable. Nothing has been written, and the
            caller must roll back its own transaction, if any.
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
    # Do not query for ids that no run can have.
    possible = [run_id for run_id in asked if is_storable(run_id, MAX_RUN_ID_LENGTH)]
    if runs is None:
        keys = keys_of_ids(model, possible, using)
    else:
        check_scope(runs, model)
        keys = keys_of(runs.using(using).filter(run_id__in=possible))
    if dry_run:
        tree = read_trees(keys, model, using)
        decision = decide(asked, tree.reached, tree.rows, force=force)
        postponed = [] if tree.is_complete else decision.roots
        return result_of(None, decision.items, decision.forced, postponed)
    outcome = retry_transaction(partial(_cancel, keys, using, asked, fields), using)
    return replay(outcome, asked, fields) if isinstance(outcome, Cancellation) else outcome


def check_commits(using: str) -> None:
    """Refuse a database without autocommit, on which nobody would commit the cancellation.

    Raises:
        ImproperlyConfigured: The database has ``AUTOCOMMIT = False``.
    """
    if connections[using].settings_dict.get("AUTOCOMMIT") is False:
        raise ImproperlyConfigured(
            f"DATABASES[{using!r}] has AUTOCOMMIT = False: nobody would commit what is cancelled."
        )


def _cancel(
    keys: Statement, using: str, asked: list[str], fields: dict[str, Any], restartable: bool
) -> CancelResult | Cancellation:
    """Cancel runs, and return the result, or an earlier Cancellation with the idempotency key.

    Without a savepoint, an error marks the caller's transaction for rollback, so that it cannot
    commit a part of the work.
    """
    model = get_run_model()
    with transaction.atomic(using=using, savepoint=False):
        tree = lock_trees(keys, model, using, restartable)
        decision = decide(asked, tree.reached, tree.rows, force=fields["force"])
        record = new_record(decision.items, {"tenant": decision.tenant, **fields})
        postponed = [] if tree.is_complete else decision.roots
        if postponed:
            record.state = CancellationState.RUNNING
        if record.idempotency_key:
            earlier = insert_record(record, using, restartable)
            if earlier is not None:
                return earlier
        write_decision(decision, tree, record, model, using)
    return result_of(record, decision.items, decision.forced, postponed)
