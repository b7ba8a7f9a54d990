"""Queries over trees of runs: descendants, children and ancestors.

A cancellation takes three steps, which avoid deadlocks and find all descendants:

1. read the primary keys of the whole tree without locks,
2. lock these rows in ascending order of their primary keys,
3. read the children again, now that nobody can add a child to a locked run.

For runs without children, ``locks.lock_childless`` replaces the first two steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connections, transaction
from django.db.models import Model, QuerySet
from django.db.models.expressions import RawSQL

from django_run_cancel.db.locks import LockedRun, lock_selected_runs
from django_run_cancel.db.statements import (
    MAX_PARAMETERS,
    Statement,
    column_of,
    fetch,
    key_conditions,
    lock_clause,
    names_of,
    table_model,
    text_condition,
)

# The names of common table expressions have a prefix, as they hide tables of the same name.

LEVELS = 3
"""Levels of children that PostgreSQL reads by one query each; one more reads the deeper ones."""

MAX_DEPTH = 1_000_000
"""Recursion limit to set on MySQL and MariaDB, whose default is 1,000 levels."""


def keys_of(scope: QuerySet[Any]) -> Statement:
    """Return the query of the primary keys of runs, which locks nothing."""
    model: type[Model] = scope.model
    # Not "pk": a subclass with multi-table inheritance may have a primary key of its own.
    query = scope.order_by().values(table_model(model)._meta.pk.name).query
    query.select_for_update = False
    try:
        sql, params = query.get_compiler(scope.db).as_sql()
    except EmptyResultSet:
        return "SELECT {pk} FROM {table} WHERE 1 = 0".format(**names_of(model, scope.db)), []
    return sql, list(params)


def keys_of_ids(model: type[Model], run_ids: Collection[str], using: str) -> Statement:
    """Return the query of the primary keys of runs with these public ids, without an ORM query."""
    condition, params = text_condition(run_ids, using)
    sql = "SELECT {pk} FROM {table} WHERE {run_id} {condition}"
    return sql.format(condition=condition, **names_of(model, using)), params


def read_closure(
    asked: Statement, model: type[Model], using: str, limit: int
) -> tuple[set[Any], set[Any]]:
    """Return the primary keys of runs, and those of the runs and all their descendants.

    Locks nothing.

    Args:
        asked: The query of the primary keys of the runs.
        model: The run model.
        using: Alias of the database.
        limit: Maximum number of keys; if there are as many, keys of descendants may be missing.
    """
    if connections[using].vendor == "postgresql":
        return _read_closure_by_levels(asked, model, using, limit)
    query, params = asked
    rows = fetch(
        using,
        # UNION, unlike UNION ALL, terminates if parents form a cycle.
        _recursive(
            "WITH RECURSIVE run_cancel_closure (pk, asked) AS ("
            "SELECT asked.*, 1 FROM ({scope}) asked UNION"
            " SELECT run.{pk}, 0 FROM run_cancel_closure closure"
            " {join} {table} run ON run.{parent} = closure.pk"
            ") SELECT pk, asked FROM run_cancel_closure LIMIT {limit}",
            using,
        ).format(
            scope=query,
            join=_join_children(using),
            limit=limit,
            **names_of(model, using),
        ),
        params,
    )
    return {pk for pk, asked in rows if asked}, {pk for pk, _ in rows}


def _join_children(using: str) -> str:
    """Return the JOIN of parents with their children.

    From ten parents on, MariaDB would rather read the parents of all runs there are.
    """
    return "STRAIGHT_JOIN" if connections[using].vendor == "mysql" else "JOIN"


def _recursive(sql: str, using: str) -> str:
    """Raise the recursion limit of a query on MySQL and MariaDB."""
    connection: Any = connections[using]
    if connection.vendor != "mysql":
        return sql
    if connection.mysql_is_mariadb:
        return f"SET STATEMENT max_recursive_iterations = {MAX_DEPTH} FOR {sql}"
    hint = f"/*+ SET_VAR(cte_max_recursion_depth = {MAX_DEPTH}) */"
    return sql.replace(") SELECT ", f") SELECT {hint} ")


def _read_closure_by_levels(
    asked: Statement, model: type[Model], using: str, limit: int
) -> tuple[set[Any], set[Any]]:
    # PostgreSQL's planner assumes that a recursive query returns millions of rows; it then scans a
    # large table, and compiles the query (JIT) before. If few runs have most of the children, it
    # also scans the table for keys that a subquery selects. It knows better for listed keys.
    reached = {pk for (pk,) in fetch(using, *asked)}
    closure, level = set(reached), reached
    for _ in range(LEVELS):
        level = read_children(model, level, using, limit) - closure
        closure |= level
        if not level or len(closure) >= limit:
            return reached, closure
    return reached, closure | _read_all_below(level, model, using, limit)


def _read_all_below(pks: Iterable[Any], model: type[Model], using: str, limit: int) -> set[Any]:
    """Return the primary keys of at most ``limit`` descendants, with sequential scans disabled.

    ``_read_closure_by_levels`` explains why PostgreSQL would scan the table otherwise.
    """
    ((condition, params),) = key_conditions(pks, model, using)
    sql = (
        "WITH RECURSIVE run_cancel_below (pk) AS ("
        "SELECT {pk} FROM {table} WHERE {parent} {condition} UNION"
        " SELECT child.pk FROM run_cancel_below below, LATERAL"
        " (SELECT {pk} AS pk FROM {table} run WHERE {parent} = below.pk OFFSET 0) child"
        ") SELECT pk FROM run_cancel_below LIMIT {limit}"
    ).format(condition=condition, limit=limit, **names_of(model, using))
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        cursor.execute("SELECT current_setting('enable_seqscan')")
        (before,) = cursor.fetchone()
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(sql, params)
        found = {pk for (pk,) in cursor.fetchall()}
        # Restore the setting, as the transaction may be one of the caller.
        cursor.execute("SELECT set_config('enable_seqscan', %s, true)", [before])
    return found


def keys_below(scope: QuerySet[Any], using: str) -> RawSQL:
    """Return a subquery of the primary keys of all descendants of runs.

    On MySQL and MariaDB it is limited to 1,000 levels.
    """
    query, params = keys_of(scope.using(using))
    model: type[Model] = scope.model
    sql = (
        "WITH RECURSIVE run_cancel_asked (pk) AS ({scope}), run_cancel_below (pk) AS ("
        "SELECT child.{pk} FROM run_cancel_asked asked"
        " {join} {table} child ON child.{parent} = asked.pk UNION"
        " SELECT child.{pk} FROM run_cancel_below below"
        " {join} {table} child ON child.{parent} = below.pk"
        ") SELECT pk FROM run_cancel_below"
    ).format(scope=query, join=_join_children(using), **names_of(model, using))
    # The names are those of the model.
    return RawSQL(sql, params)  # noqa: S611  # nosec B611


def read_children(
    model: type[Model], pks: Iterable[Any], using: str, limit: int | None = None
) -> set[Any]:
    """Return the primary keys of the direct children of runs.

    On MySQL and MariaDB under REPEATABLE READ, the query locks the rows: a plain SELECT would read
    the snapshot from the start of the transaction.

    Args:
        model: The run model.
        pks: Primary keys of the runs.
        using: Alias of the database.
        limit: Maximum number of children; only for PostgreSQL.
    """
    connection = connections[using]
    names = names_of(model, using)
    snapshot = getattr(connection, "isolation_level", None) != "read committed"
    clause = lock_clause(using) if connection.vendor == "mysql" and snapshot else ""
    # For a longer list InnoDB only estimates the number of rows. It may then scan the table, and a
    # locking read would lock all of it.
    listed = 199 if clause else MAX_PARAMETERS - 100
    if limit is not None:
        clause = f" LIMIT {limit}"
    found: set[Any] = set()
    for condition, params in key_conditions(pks, model, using, listed):
        sql = "SELECT {pk} FROM {table} WHERE {parent} {condition}".format(
            condition=condition, **names
        )
        found.update(pk for (pk,) in fetch(using, sql + clause, params))
    return found


def lock_ancestors(model: type[Model], pk: Any, using: str) -> list[LockedRun]:
    """Lock a run and all its ancestors, in the same order as a cancellation does.

    Not only the parent: a finished parent keeps its status when a run above it is cancelled.

    Returns:
        The locked rows; empty if the run does not exist.
    """
    keys = _recursive(
        "WITH RECURSIVE run_cancel_line (pk, parent) AS ("
        "SELECT {pk}, {parent} FROM {table} WHERE {pk} = %s UNION"
        " SELECT run.{pk}, run.{parent} FROM {table} run"
        " JOIN run_cancel_line line ON run.{pk} = line.parent"
        ") SELECT pk FROM run_cancel_line",
        using,
    ).format(**names_of(model, using))
    key: Any = model._meta.pk
    rows = lock_selected_runs(model, keys, [key.get_db_prep_value(pk, connections[using])], using)
    # It may have been deleted while its ancestors were being locked.
    exists = any(key.to_python(row.pk) == key.to_python(pk) for row in rows)
    return rows if exists else []


def read_distinct(rows: QuerySet[Any], name: str, limit: int) -> list[Any]:
    """Return at most ``limit`` distinct values of an indexed field, in ascending order.

    The query reads one index entry for each value (a loose index scan). MySQL and MariaDB do so for
    DISTINCT, where the other databases would read all rows.
    """
    using = rows.db
    if connections[using].vendor == "mysql":
        return list(rows.order_by(name).values_list(name, flat=True).distinct()[:limit])
    try:
        query, params = rows.order_by().values(name).query.get_compiler(using).as_sql()
    except EmptyResultSet:
        return []
    field = connections[using].ops.quote_name(column_of(rows.model._meta.get_field(name)))
    least = f"SELECT MIN({field}) FROM ({query}) rows_of_scope"
    found = fetch(
        using,
        f"WITH RECURSIVE run_cancel_found (value, number) AS (SELECT ({least}), 1 UNION ALL"
        f" SELECT ({least} WHERE {field} > found.value), found.number + 1"
        " FROM run_cancel_found found WHERE found.value IS NOT NULL AND found.number < %s"
        ") SELECT value FROM run_cancel_found WHERE value IS NOT NULL",
        [*params, *params, limit],
    )
    return [value for (value,) in found]
