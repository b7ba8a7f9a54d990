"""Row locks: locking rows in the order of their keys, and updates that skip locked rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.models import Model, QuerySet

from django_run_cancel.db.retry import sqlstate_of
from django_run_cancel.db.statements import (
    Statement,
    execute,
    fetch,
    key_conditions,
    lock_clause,
    names_of,
)
from django_run_cancel.safe_text import describe_error, printable, printable_lines
from django_run_cancel.states import WAITING

LOCK_WAIT = "5s"
"""How long statements wait for locks after ``limit_lock_waits``."""

MISSING = {"42P01", "42703"}
"""SQLSTATE of PostgreSQL for a table or column that does not exist; MySQL has the number 1146."""

_log_once = lru_cache(1_000)(logging.getLogger("django_run_cancel").error)


class LockedRun(NamedTuple):
    """The columns of a run that a cancellation reads. Non-text fields are raw database values."""

    pk: Any
    parent: Any
    run_id: str
    tenant: str
    status: str
    backend: str
    external_id: str
    started_at: Any
    stop_state: str

    @property
    def never_started(self) -> bool:
        """Whether the code of the run never started. ``writes`` has the same in SQL."""
        return self.started_at is None and self.status in WAITING


def lock_runs(model: type[Model], pks: Iterable[Any], using: str) -> list[LockedRun]:
    """Lock rows by primary key in ascending order and return those that still exist."""
    return list(_read_runs(model, key_conditions(pks, model, using), using, lock_clause(using)))


def read_runs(model: type[Model], pks: Iterable[Any], using: str) -> list[LockedRun]:
    """Return the same rows as ``lock_runs`` without locking them, for a dry run."""
    return list(_read_runs(model, key_conditions(pks, model, using), using, ""))


def lock_selected_runs(
    model: type[Model], keys: str, params: list[Any], using: str
) -> list[LockedRun]:
    """Lock the rows whose primary keys a subquery selects, in ascending order, like ``lock_runs``.

    Uses one statement; MySQL and MariaDB need two, as one could lock all rows of the table.
    """
    if connections[using].vendor == "mysql":
        return lock_runs(model, [pk for (pk,) in fetch(using, keys, params)], using)
    condition = _is_selected(keys, using)
    return list(_read_runs(model, [(condition, params)], using, lock_clause(using)))


def lock_childless(asked: Statement, model: type[Model], using: str) -> list[LockedRun]:
    """Lock runs in ascending order like ``lock_runs``, but none if one of them has children.

    This one statement then replaces ``read_closure`` and ``lock_runs``. MySQL and MariaDB could
    lock all rows of the table, and are not asked.

    Args:
        asked: The query of the primary keys of the runs.
        model: The run model.
        using: Alias of the database.

    Returns:
        The locked rows; empty if a run has children, or none was found.
    """
    if connections[using].vendor == "mysql":
        return []
    keys, params = asked
    sql = (
        "WITH run_cancel_asked (pk) AS ({keys})"
        " SELECT {columns} FROM {table} WHERE {pk} {condition}"
        # This reads one index entry for each run, whatever the planner expects of the others.
        " AND NOT EXISTS (SELECT 1 FROM run_cancel_asked asked WHERE asked.pk ="
        " (SELECT child.{parent} FROM {table} child WHERE child.{parent} >= asked.pk"
        " ORDER BY child.{parent} LIMIT 1))"
        " ORDER BY {pk}"
    ).format(
        keys=keys,
        columns=_columns(model, using),
        condition=_is_selected("SELECT asked.pk FROM run_cancel_asked asked", using),
        **names_of(model, using),
    )
    return list(_as_locked_runs(fetch(using, sql + lock_clause(using), params)))


def _is_selected(keys: str, using: str) -> str:
    # PostgreSQL's planner assumes that an array is short, and uses the index.
    is_postgresql = connections[using].vendor == "postgresql"
    return f"= ANY (ARRAY({keys}))" if is_postgresql else f"IN ({keys})"


def _read_runs(
    model: type[Model], conditions: Iterable[tuple[str, list[Any]]], using: str, clause: str
) -> Iterator[LockedRun]:
    names = names_of(model, using)
    columns = _columns(model, using)
    for condition, params in conditions:
        sql = "SELECT {columns} FROM {table} WHERE {pk} {condition} ORDER BY {pk}".format(
            columns=columns, condition=condition, **names
        )
        yield from _as_locked_runs(fetch(using, sql + clause, params))


def _columns(model: type[Model], using: str) -> str:
    names = names_of(model, using)
    return ", ".join(names[field] for field in LockedRun._fields)


def _as_locked_runs(rows: list[tuple[Any, ...]]) -> Iterator[LockedRun]:
    # What LockedRun._make() does, without its call in Python for each row.
    return map(partial(tuple.__new__, LockedRun), rows)


def limit_lock_waits(using: str) -> None:
    """Let statements of this transaction fail if they wait longer than ``LOCK_WAIT`` for a lock.

    PostgreSQL alone waits without a limit by default. A limit that the host has set stays.
    """
    if connections[using].vendor == "postgresql":
        sql = "SELECT set_config('lock_timeout', %s, true)"
        execute(using, sql + " WHERE current_setting('lock_timeout') = '0'", [LOCK_WAIT])


def lock_rows(rows: QuerySet[Any]) -> list[Any]:
    """Lock rows of any model for deletion or update, in ascending order of their primary keys.

    SQLite has no row locks: a writing transaction locks the whole database.

    Returns:
        The primary keys of the rows.
    """
    return list(rows.order_by("pk").select_for_update().values_list("pk", flat=True))


def update_unlocked(rows: QuerySet[Any], **values: Any) -> list[Any]:
    """Update runs or items, skipping rows that are locked or that the database refuses to write.

    A database without ``SKIP LOCKED`` waits for locked rows instead.

    Args:
        rows: The rows. The UPDATE repeats their filters, or the rows are locked before it.
        values: As for ``QuerySet.update()``.

    Returns:
        The primary keys of the updated rows. Without ``SKIP LOCKED``, an empty list unless all rows
        were updated.
    """
    try:
        return _update_unlocked(rows, values)
    except DatabaseError as error:
        if not is_refusal(error):
            raise
    written = []
    for pk, run_id in list(rows.values_list("pk", "run_id")):
        with skip_refused_rows(f"{rows.model.__name__} of run {run_id}"):
            written += _update_unlocked(rows.filter(pk=pk), values)
    return written


def _update_unlocked(rows: QuerySet[Any], values: dict[str, Any]) -> list[Any]:
    features = connections[rows.db].features
    if not features.has_select_for_update_skip_locked:
        pks = list(rows.values_list("pk", flat=True))
        return pks if rows.filter(pk__in=pks).update(**values) == len(pks) else []
    with transaction.atomic(using=rows.db):
        # FOR NO KEY UPDATE does not conflict with inserts of rows that reference this one.
        locked = rows.select_for_update(
            skip_locked=True, no_key=features.has_select_for_no_key_update
        )
        pks = list(locked.values_list("pk", flat=True))
        # Filter by primary key only: with two long lists of keys, PostgreSQL scans the table.
        if pks:
            rows.model._base_manager.using(rows.db).filter(pk__in=pks).update(**values)
        return pks


def is_refusal(error: DatabaseError) -> bool:
    """Tell whether the database refused to write a row, for example because of a trigger.

    Other errors, such as a lost connection, or a column that the next migration adds, have nothing
    to do with the row.
    """
    # A MySQL trigger that raises SIGNAL causes an OperationalError with this number.
    is_operational = isinstance(error, OperationalError) and error.args[:1] != (1644,)
    is_missing = sqlstate_of(error) in MISSING or error.args[:1] == (1146,)
    return not (is_operational or is_missing)


@contextmanager
def skip_refused_rows(label: str) -> Iterator[None]:
    """Log and suppress the error if the database refuses to write a row. Each is logged once.

    Args:
        label: Name of the row in the log.
    """
    try:
        yield
    except DatabaseError as error:
        if not is_refusal(error):
            raise
        shown = printable_lines(describe_error(error, 1_000))
        _log_once("%s cannot be written: %s", printable(label), shown)
