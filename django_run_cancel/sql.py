"""The SQL of a cancellation that the ORM cannot write, or only slowly.

The order of steps is what keeps cancellations free of deadlocks and complete:

1. read the keys of the whole tree without a lock,
2. lock these rows by primary key in ascending order,
3. look again for children, now that nobody can add one below a locked run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.models import Model, QuerySet
from django.utils import timezone

from django_run_cancel.exceptions import describe
from django_run_cancel.states import ACTIVE, WAITING, RunStatus, StopState

T = TypeVar("T")

_log_once = lru_cache(1_000)(logging.getLogger("django_run_cancel").error)

MAX_PARAMETERS = 30_000
"""Per statement; SQLite takes 32,766 by default, and PostgreSQL 65,535 if it binds them itself."""

CHANNEL = "run_cancel"
"""On which PostgreSQL tells processes that runs have been cancelled."""

LEVELS = 3
"""Levels of children that the first statement reads on PostgreSQL; deeper ones take one each."""

COLUMNS = (
    *("parent", "run_id", "tenant", "status", "backend", "external_id", "started_at"),
    *("finished_at", "cancellation", "stop_state", "stopped_at"),
)


class LockedRun(NamedTuple):
    """What a cancellation needs to know of a run. Other than texts are database values."""

    pk: Any
    parent: Any
    run_id: str
    tenant: str
    status: str
    backend: str
    external_id: str
    started_at: Any

    @property
    def never_started(self) -> bool:
        """Tell whether no code of it has ever run; ``write_cancelled`` decides by the same."""
        return self.started_at is None and self.status in WAITING


def read_closure(scope: QuerySet[Any], model: type[Model], using: str) -> tuple[set[Any], set[Any]]:
    """Return, without a lock, the keys of these runs and those of their whole trees."""
    try:
        query, params = scope.order_by().values("pk").query.get_compiler(using).as_sql()
    except EmptyResultSet:
        return set(), set()
    if connections[using].vendor == "postgresql":
        return _read_closure_by_levels(query, params, model, using)
    # UNION, not UNION ALL: it ends on a cycle.
    rows = _fetch(
        using,
        "WITH RECURSIVE closure (pk, asked) AS ("
        "SELECT asked.*, 1 FROM ({scope}) asked UNION"
        " SELECT run.{pk}, 0 FROM {table} run JOIN closure ON run.{parent} = closure.pk"
        ") SELECT pk, asked FROM closure".format(scope=query, **_names(model, using)),
        params,
    )
    return {pk for pk, asked in rows if asked}, {pk for pk, _ in rows}


def _read_closure_by_levels(
    query: str, params: Sequence[Any], model: type[Model], using: str
) -> tuple[set[Any], set[Any]]:
    # PostgreSQL expects a recursive query to find millions of rows, and so reads a large table from
    # end to end, and compiles the query first. Likewise it joins even a handful of rows by reading
    # all of a table in which each may have many children. Of an array it expects ten elements, and
    # looks these up in the index.
    names = _names(model, using)
    child = "level{n} (pk) AS (SELECT {pk} FROM {table} WHERE {parent} = ANY (ARRAY({above})))"
    ctes = "".join(
        ", " + child.format(n=n, above=f"SELECT pk FROM level{n - 1}", **names)
        for n in range(1, LEVELS + 1)
    )
    selects = " UNION ALL ".join(f"SELECT {n}, pk FROM level{n}" for n in range(LEVELS + 1))
    levels: list[set[Any]] = [set() for _ in range(LEVELS + 1)]
    for level, pk in _fetch(using, f"WITH level0 (pk) AS ({query}){ctes} {selects}", params):
        levels[level].add(pk)
    closure = set().union(*levels)
    unread = levels[-1].difference(*levels[:-1])
    while unread:
        unread = read_children(model, unread, using) - closure
        closure |= unread
    return levels[0], closure


def lock_runs(model: type[Model], pks: Iterable[Any], using: str) -> list[LockedRun]:
    """Lock rows by primary key in ascending order and return those that still exist."""
    return list(_read_runs(model, pks, using, _lock_clause(using)))


def read_runs(model: type[Model], pks: Iterable[Any], using: str) -> list[LockedRun]:
    """Return the same as ``lock_runs`` without locking anything, for a dry run."""
    return list(_read_runs(model, pks, using, ""))


def read_children(model: type[Model], pks: Iterable[Any], using: str) -> set[Any]:
    """Return the keys of the direct children of runs.

    On MySQL and MariaDB, unless each statement sees what has been committed before it, the read is
    a locking one: a plain one would show the children that there were when the transaction began.
    """
    connection = connections[using]
    names = _names(model, using)
    snapshot = getattr(connection, "isolation_level", None) != "read committed"
    lock = _lock_clause(using) if connection.vendor == "mysql" and snapshot else ""
    found: set[Any] = set()
    # Of a longer list InnoDB only guesses how many rows belong to it; it then scans all rows, which
    # a locking read would lock.
    for chunk in _chunks(sorted(pks), 199) if lock else _key_chunks(pks, using):
        sql = "SELECT {pk} FROM {table} WHERE {parent} IN ({in_})".format(
            in_=_placeholders(chunk), **names
        )
        found.update(pk for (pk,) in _fetch(using, sql + lock, chunk))
    return found


def read_distinct(rows: QuerySet[Any], name: str, limit: int) -> list[Any]:
    """Return the first values of an indexed field among these rows, in ascending order.

    One look into the index for each. MySQL and MariaDB do that for DISTINCT, and read all rows for
    the query below; the others do the opposite.
    """
    using = rows.db
    if connections[using].vendor == "mysql":
        return list(rows.order_by(name).values_list(name, flat=True).distinct()[:limit])
    try:
        query, params = rows.order_by().values(name).query.get_compiler(using).as_sql()
    except EmptyResultSet:
        return []
    field = connections[using].ops.quote_name(_column(rows.model._meta.get_field(name)))
    least = f"SELECT MIN({field}) FROM ({query}) rows_of_scope"
    found = _fetch(
        using,
        f"WITH RECURSIVE found (value, number) AS (SELECT ({least}), 1 UNION ALL"
        f" SELECT ({least} WHERE {field} > found.value), found.number + 1"
        " FROM found WHERE found.value IS NOT NULL AND found.number < %s"
        ") SELECT value FROM found WHERE value IS NOT NULL",
        [*params, *params, limit],
    )
    return [value for (value,) in found]


def lock_ancestors(model: type[Model], pk: Any, using: str) -> list[LockedRun]:
    """Lock a run and all runs above it, in the same order as a cancellation does.

    All of them, because one that has finished does not carry on the word that the run above it
    was cancelled.

    Returns:
        The locked rows; none when the run does not exist.
    """
    names = _names(model, using)
    rows = _fetch(
        using,
        "WITH RECURSIVE line (pk, parent) AS ("
        "SELECT {pk}, {parent} FROM {table} WHERE {pk} = %s UNION"
        " SELECT run.{pk}, run.{parent} FROM {table} run JOIN line ON run.{pk} = line.parent"
        ") SELECT pk FROM line".format(**names),
        [model._meta.pk.get_db_prep_value(pk, connections[using])],
    )
    return lock_runs(model, [pk for (pk,) in rows], using)


def write_cancelled(model: type[Model], pks: Iterable[Any], cancellation: int, using: str) -> None:
    """Set locked, active runs to cancelled by the cancellation with this key."""
    names = _names(model, using)
    waiting, active = sorted(WAITING), sorted(ACTIVE)
    now = connections[using].ops.adapt_datetimefield_value(timezone.now())
    # The status comes last: MySQL assigns from left to right, and the cases ask for the old one.
    statement = (
        "UPDATE {table} SET {finished_at} = %s, {cancellation} = %s,"
        " {stop_state} = CASE WHEN {never_started} THEN %s ELSE %s END,"
        " {stopped_at} = CASE WHEN {never_started} THEN %s ELSE NULL END,"
        " {status} = %s WHERE {status} IN ({active}) AND {pk} IN "
    ).format(
        # Not a retry that waits in the queue: nobody has said that its first attempt has ended.
        never_started="{started_at} IS NULL AND {status} IN ({waiting})".format(
            waiting=_placeholders(waiting), **names
        ),
        active=_placeholders(active),
        **names,
    )
    before = [now, cancellation, *waiting, StopState.NEVER_STARTED, StopState.STOPPING]
    before += [*waiting, now, RunStatus.CANCELLED, *active]
    for chunk in _key_chunks(pks, using):
        with connections[using].cursor() as cursor:
            cursor.execute(f"{statement}({_placeholders(chunk)})", [*before, *chunk])


def update_unlocked(rows: QuerySet[Any], **values: Any) -> list[Any]:
    """Update rows, but wait for none that somebody has locked.

    Args:
        rows: The rows; what it asks for holds in the statement that writes.
        values: As for ``QuerySet.update()``.

    Returns:
        The keys of the rows that were updated. Where the database cannot skip locked rows, they
        are waited for after all, and none is named if one of several was not updated.
    """
    features = connections[rows.db].features
    if not features.has_select_for_update_skip_locked:
        pks = list(rows.values_list("pk", flat=True))
        return pks if rows.filter(pk__in=pks).update(**values) == len(pks) else []
    with transaction.atomic(using=rows.db):
        # Not even who inserts a row that refers to one of these has it locked for that.
        locked = rows.select_for_update(
            skip_locked=True, no_key=features.has_select_for_no_key_update
        )
        pks = list(locked.values_list("pk", flat=True))
        if pks:
            rows.filter(pk__in=pks).update(**values)
        return pks


@contextmanager
def leaving_out(run_id: str) -> Iterator[None]:
    """Let an error about one run keep no other waiting. An OperationalError is about all."""
    try:
        yield
    except DatabaseError as error:
        # What a trigger of MySQL raises with SIGNAL is an OperationalError as well.
        if isinstance(error, OperationalError) and error.args[:1] != (1644,):
            raise
        _log_once("Run %s cannot be written: %s", run_id, describe(error, 1_000))


def notify(using: str) -> None:
    """Tell listening processes, when the transaction commits, that there is something to see."""
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")


def insert_rows(
    model: type[Model], names: Sequence[str], rows: Iterable[Sequence[Any]], using: str
) -> None:
    """Insert rows of database-ready values, without building an instance for each."""
    quote = connections[using].ops.quote_name
    columns = ", ".join(quote(_column(model._meta.get_field(name))) for name in names)
    for chunk in _chunks(rows, MAX_PARAMETERS // len(names)):
        values = ", ".join([f"({_placeholders(names)})"] * len(chunk))
        sql = f"INSERT INTO {quote(model._meta.db_table)} ({columns}) VALUES {values}"
        with connections[using].cursor() as cursor:
            cursor.execute(sql, [value for row in chunk for value in row])


def insert(instance: Model, using: str) -> None:
    """Insert one instance and set its key, without the signals of ``save()``.

    Receivers of a host's would run while the runs are locked.
    """
    connection = connections[using]
    quote = connection.ops.quote_name
    meta = instance._meta
    fields = [field for field in meta.concrete_fields if not field.primary_key]
    columns = ", ".join(quote(_column(field)) for field in fields)
    statement = f"INSERT INTO {quote(meta.db_table)} ({columns}) VALUES ({_placeholders(fields)})"
    values = [
        field.get_db_prep_save(getattr(instance, field.attname), connection) for field in fields
    ]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"{statement} RETURNING {quote(_column(meta.pk))}", values)
            (instance.pk,) = cursor.fetchone()
        else:
            cursor.execute(statement, values)
            instance.pk = cursor.lastrowid
    instance._state.adding = False
    instance._state.db = using


def _read_runs(
    model: type[Model], pks: Iterable[Any], using: str, clause: str
) -> Iterator[LockedRun]:
    names = _names(model, using)
    columns = ", ".join(names[field] for field in LockedRun._fields)
    for chunk in _key_chunks(pks, using):
        sql = "SELECT {columns} FROM {table} WHERE {pk} IN ({in_}) ORDER BY {pk}".format(
            columns=columns, in_=_placeholders(chunk), **names
        )
        yield from map(LockedRun._make, _fetch(using, sql + clause, chunk))


def _names(model: type[Model], using: str) -> dict[str, str]:
    quote = connections[using].ops.quote_name
    meta = model._meta
    columns = {name: quote(_column(meta.get_field(name))) for name in COLUMNS}
    return {"table": quote(meta.db_table), "pk": quote(_column(meta.pk)), **columns}


def _column(field: Any) -> str:
    column: str = field.column
    return column


def _lock_clause(using: str) -> str:
    features = connections[using].features
    if not features.has_select_for_update:
        return ""  # SQLite: a transaction that writes has the database to itself.
    # The weaker lock of PostgreSQL lets rows that refer to a run be inserted meanwhile.
    no_key = features.has_select_for_no_key_update
    return " " + connections[using].ops.for_update_sql(no_key=no_key)


def _key_chunks(pks: Iterable[Any], using: str) -> Iterator[list[Any]]:
    # From 1,000 values on MariaDB makes a subquery of a list; it then scans, and locks, all rows.
    limit = 900 if connections[using].vendor == "mysql" else MAX_PARAMETERS - 100
    return _chunks(sorted(pks), limit)


def _chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk


def _placeholders(values: Sized) -> str:
    return ", ".join(["%s"] * len(values))


def _fetch(using: str, sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    with connections[using].cursor() as cursor:
        cursor.execute(sql, params)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows
