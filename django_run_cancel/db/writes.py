"""Writes in SQL: UPDATE of cancelled runs, INSERT of cancellations and items, and NOTIFY."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from django.db import connections
from django.db.models import Model

from django_run_cancel.db.clock import now_parameter
from django_run_cancel.db.conditions import unindexed_sql
from django_run_cancel.db.statements import (
    MAX_PARAMETERS,
    array_parameter,
    column_of,
    execute,
    fetch,
    key_conditions,
    key_type,
    names_of,
    placeholders,
)
from django_run_cancel.db.trees import read_children
from django_run_cancel.states import ACTIVE, WAITING, RunStatus, StopState

NOW: Any = object()
"""Placeholder for the database's current time in the values of ``insert_rows``."""

CHANNEL = "run_cancel"
"""PostgreSQL channel that announces cancellations to listening processes."""

Statement = tuple[str, list[Any]]


def write_and_read_children(
    model: type[Model],
    cancelled: tuple[Sequence[Any], int],
    items: tuple[type[Model], Mapping[str, Sequence[Any]]],
    parents: Iterable[Any],
    using: str,
) -> set[Any]:
    """Call ``write_cancelled``, ``insert_rows`` and ``read_children``.

    PostgreSQL does all three with one statement, which saves two round trips.

    Args:
        model: The run model.
        cancelled: Primary keys of the runs to cancel, and the primary key of the cancellation.
        items: Model of the rows to insert, and their values, by the name of the field.
        parents: Primary keys of locked runs whose children are read; may be empty.
        using: Alias of the database.

    Returns:
        The primary keys of the children.
    """
    if connections[using].vendor != "postgresql":
        write_cancelled(model, *cancelled, using)
        insert_rows(*items, using)
        return read_children(model, parents, using)
    writes = [*_updates(model, *cancelled, using), *_inserts(*items, using)]
    ctes = ", ".join(f"write{number} AS ({sql})" for number, (sql, _) in enumerate(writes))
    select = "SELECT {pk} FROM {table} WHERE {parent} = ANY (%s::{key}[])".format(
        key=key_type(model, using), **names_of(model, using)
    )
    params = [value for _, values in writes for value in values]
    rows = fetch(
        using,
        f"WITH {ctes} {select}" if ctes else select,
        [*params, array_parameter(sorted(parents))],
    )
    return {pk for (pk,) in rows}


def write_cancelled(model: type[Model], pks: Iterable[Any], cancellation: int, using: str) -> None:
    """Set active runs, whose rows are locked, to ``cancelled``.

    Args:
        model: The run model.
        pks: Primary keys of the runs.
        cancellation: Primary key of the cancellation.
        using: Alias of the database.
    """
    for sql, params in _updates(model, pks, cancellation, using):
        execute(using, sql, params)


def _updates(
    model: type[Model], pks: Iterable[Any], cancellation: int, using: str
) -> Iterator[Statement]:
    names = names_of(model, using)
    waiting, active = sorted(WAITING), sorted(ACTIVE)
    now, at = now_parameter(using)
    # The status comes last: MySQL assigns from left to right, and CASE needs the old status.
    statement = (
        "UPDATE {table} SET {finished_at} = {now}, {cancellation} = %s,"
        " {stop_state} = CASE WHEN {never_started} THEN %s ELSE %s END,"
        " {stopped_at} = CASE WHEN {never_started} THEN {now} ELSE NULL END,"
        " {status} = %s WHERE {condition} IN ({active}) AND {pk} "
    ).format(
        # A queued retry has a ``started_at``, and counts as started: its first attempt may run on.
        never_started="{started_at} IS NULL AND {status} IN ({waiting})".format(
            waiting=placeholders(waiting), **names
        ),
        active=placeholders(active),
        condition=unindexed_sql(names["status"], connections[using].vendor),
        now=now,
        **names,
    )
    before = [*at, cancellation, *waiting, StopState.NEVER_STARTED, StopState.STOPPING]
    before += [*waiting, *at, RunStatus.CANCELLED, *active]
    for condition, params in key_conditions(pks, model, using):
        yield statement + condition, [*before, *params]


def insert_rows(model: type[Model], values: Mapping[str, Sequence[Any]], using: str) -> None:
    """Insert rows of database-ready values, without creating model instances.

    A value that is the same in all rows is sent once. The value ``NOW`` inserts the current time of
    the database.

    Args:
        model: The model.
        values: By the name of the field, one value for each row.
        using: Alias of the database.
    """
    for sql, params in _inserts(model, values, using):
        execute(using, sql, params)


def _inserts(
    model: type[Model], values: Mapping[str, Sequence[Any]], using: str
) -> Iterator[Statement]:
    is_postgresql = connections[using].vendor == "postgresql"
    # PostgreSQL takes a column as one parameter.
    size = sys.maxsize if is_postgresql else MAX_PARAMETERS // len(values)
    source = _unnest if is_postgresql else _values_list
    insert, types = _insert_into(model, tuple(values), using)
    count = len(next(iter(values.values())))
    for start in range(0, count, size):
        columns = [_Column(of_field[start : start + size]) for of_field in values.values()]
        select, params = source(types, columns, using)
        yield f"{insert} {select}", params


@lru_cache(100)
def _insert_into(model: type[Model], names: Sequence[str], using: str) -> tuple[str, list[str]]:
    """Return the beginning of an INSERT statement, and the types of its columns."""
    connection = connections[using]
    quote = connection.ops.quote_name
    fields: list[Any] = [model._meta.get_field(name) for name in names]
    columns = ", ".join(quote(column_of(field)) for field in fields)
    types = [field.rel_db_type(connection) for field in fields]
    return f"INSERT INTO {quote(model._meta.db_table)} ({columns})", types


class _Column:
    """The values of one column, for all rows to insert."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.is_constant = values.count(values[0]) == len(values)
        self.is_time = NOW in values
        # A column of times holds only NOW and None: send booleans instead.
        self.values = [value is NOW for value in values] if self.is_time else list(values)


def _unnest(types: list[str], columns: Sequence[_Column], using: str) -> Statement:
    """Return a SELECT from ``unnest()`` of arrays, which needs one placeholder for each column."""
    shown, params, names, casts, lists = [], [], [], [], []
    for number, (of_field, column) in enumerate(zip(types, columns, strict=True)):
        kind = "boolean" if column.is_time else of_field
        sql, values = _shown(column, f"v.c{number}", f"%s::{kind}", using)
        shown.append(sql)
        params += values
        if not column.is_constant:
            names.append(f"c{number}")
            casts.append(f"%s::{kind}[]")
            lists.append(array_parameter(column.values))
    if not names:
        ones = [1] * len(columns[0].values)
        names, casts, lists = ["one"], ["%s::int[]"], [array_parameter(ones)]
    source = f"unnest({', '.join(casts)}) AS v ({', '.join(names)})"
    return f"SELECT {', '.join(shown)} FROM {source}", [*params, *lists]


def _values_list(types: list[str], columns: Sequence[_Column], using: str) -> Statement:
    """Return a SELECT from VALUES, with placeholders for all columns that are not constant."""
    connection = connections[using]
    is_mysql = connection.vendor == "mysql" and not getattr(connection, "mysql_is_mariadb", False)
    shown, params, names, lists = [], [], [], []
    for number, column in enumerate(columns):
        sql, values = _shown(column, f"v.c{number}", "%s", using)
        shown.append(sql)
        params += values
        if not column.is_constant:
            names.append(f"c{number}")
            lists.append(column.values)
    if not names:
        names, lists = ["one"], [[1] * len(columns[0].values)]
    row = ("ROW" if is_mysql else "") + f"({placeholders(names)})"
    rows = ", ".join([row] * len(lists[0]))
    select = f"WITH v ({', '.join(names)}) AS (VALUES {rows}) SELECT {', '.join(shown)} FROM v"
    in_rows = [value for values in zip(*lists, strict=True) for value in values]
    return select, [*in_rows, *params]


def _shown(column: _Column, name: str, placeholder: str, using: str) -> Statement:
    if not column.is_time:
        return (placeholder, column.values[:1]) if column.is_constant else (name, [])
    now, at = now_parameter(using)
    return (now if column.is_constant else f"CASE WHEN {name} THEN {now} END"), at


def insert(instance: Model, using: str) -> None:
    """Insert one instance and set its primary key, without the signals of ``save()``.

    Receivers of the host would run while rows are locked.
    """
    connection = connections[using]
    statement, fields = _insert_one(type(instance), using)
    values = [
        field.get_db_prep_save(getattr(instance, field.attname), connection) for field in fields
    ]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        # PostgreSQL alone is asked for the key in the statement.
        (instance.pk,) = cursor.fetchone() if cursor.description else (cursor.lastrowid,)
    instance._state.adding = False
    instance._state.db = using


@lru_cache(100)
def _insert_one(model: type[Model], using: str) -> tuple[str, list[Any]]:
    """Return the statement that inserts one row, and the fields of its values."""
    quote = connections[using].ops.quote_name
    fields = [field for field in model._meta.concrete_fields if not field.primary_key]
    columns = ", ".join(quote(column_of(field)) for field in fields)
    table = quote(model._meta.db_table)
    statement = f"INSERT INTO {table} ({columns}) VALUES ({placeholders(fields)})"
    if connections[using].vendor == "postgresql":
        statement += f" RETURNING {quote(column_of(model._meta.pk))}"
    return statement, fields


def notify(using: str) -> None:
    """Notify listening processes, when the transaction commits, that runs have been cancelled."""
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")
