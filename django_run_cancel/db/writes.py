"""Writes in SQL: INSERT of cancellations and items, UPDATE of cancelled runs, and NOTIFY."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Model

from django_run_cancel.db.clock import now_parameter
from django_run_cancel.db.conditions import unindexed_sql
from django_run_cancel.db.statements import (
    MAX_PARAMETERS,
    Statement,
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
"""Placeholder for the database's current time in the values of items."""

OF_RECORD: Any = object()
"""Placeholder for the primary key of a cancellation that the same statement inserts."""

KEY_OF_RECORD = "(SELECT pk FROM run_cancel_record)"
"""SQL of ``OF_RECORD``, in a statement that inserts the cancellation in a CTE of this name."""

ALL_CHILDREN = "SELECT NULL, {pk} FROM {table} WHERE {parent} = ANY (%s::{key}[])"

# Reads one index entry for each parent. If other runs have many children, PostgreSQL would expect
# the same of these, and scan the table.
ONE_CHILD_EACH = """SELECT NULL, child.pk FROM unnest(%s::{key}[]) AS asked (pk), LATERAL (
SELECT {pk} AS pk, {parent} AS parent FROM {table} run WHERE {parent} >= asked.pk
ORDER BY {parent} LIMIT 1) child WHERE child.parent = asked.pk"""

CHANNEL = "run_cancel"
"""PostgreSQL channel that announces cancellations to listening processes."""


class Parents(NamedTuple):
    """Locked runs that nobody can add children to any more.

    Attributes:
        pks: Primary keys of the runs.
        are_childless: Whether none of them had children before.
    """

    pks: set[Any]
    are_childless: bool = False


def write_cancellation(
    record: Model,
    cancelled: tuple[type[Model], Sequence[Any]],
    items: tuple[type[Model], Mapping[str, Sequence[Any]]],
    parents: Parents,
    using: str,
) -> set[Any]:
    """Insert a cancellation and its items, cancel active runs, and read children of locked runs.

    PostgreSQL does all of it with one statement, which saves three round trips.

    Args:
        record: The cancellation. It is not inserted if it has a primary key.
        cancelled: The run model, and the primary keys of the runs to cancel, whose rows are locked.
        items: Model of the items, and their database-ready values, by the name of the field: one
            for each item. The value ``NOW`` inserts the current time of the database.
        parents: The locked runs whose children are read.
        using: Alias of the database.

    Returns:
        The primary keys of the children; of runs that are expected to have none, of one child each.
    """
    if connections[using].vendor == "postgresql":
        return _write_at_once(record, cancelled, items, parents, using)
    if record.pk is None:
        insert(record, using)
    for sql, params in _updates_and_inserts(record.pk, cancelled, items, using):
        execute(using, sql, params)
    return read_children(cancelled[0], parents.pks, using)


def _write_at_once(
    record: Model,
    cancelled: tuple[type[Model], Sequence[Any]],
    items: tuple[type[Model], Mapping[str, Sequence[Any]]],
    parents: Parents,
    using: str,
) -> set[Any]:
    key = record.pk
    ctes, selects, listed = [], [], []
    if key is None:
        key = OF_RECORD
        ctes.append(("run_cancel_record (pk)", _insertion_of(record, using)))
        selects.append("SELECT pk, NULL FROM run_cancel_record")
    for number, statement in enumerate(_updates_and_inserts(key, cancelled, items, using)):
        ctes.append((f"run_cancel_write{number}", statement))
    if parents.pks or not selects:
        model = cancelled[0]
        select = ONE_CHILD_EACH if parents.are_childless else ALL_CHILDREN
        selects.append(select.format(key=key_type(model, using), **names_of(model, using)))
        listed.append(array_parameter(sorted(parents.pks)))
    with_ctes = ", ".join(f"{name} AS ({statement})" for name, (statement, _) in ctes)
    params = [value for _, (_, values) in ctes for value in values]
    sql = (f"WITH {with_ctes} " if ctes else "") + " UNION ALL ".join(selects)
    rows = fetch(using, sql, [*params, *listed])
    if key is OF_RECORD:
        (inserted,) = (pk for pk, _ in rows if pk is not None)
        _mark_inserted(record, inserted, using)
    return {child for _, child in rows if child is not None}


def _updates_and_inserts(
    key: Any,
    cancelled: tuple[type[Model], Sequence[Any]],
    items: tuple[type[Model], Mapping[str, Sequence[Any]]],
    using: str,
) -> Iterator[Statement]:
    """Yield the statements that write the runs and items of the cancellation with this key."""
    yield from _updates(*cancelled, key, using)
    item, values = items
    count = len(next(iter(values.values())))
    yield from _inserts(item, {"cancellation": [key] * count, **values}, using)


def _updates(model: type[Model], pks: Iterable[Any], key: Any, using: str) -> Iterator[Statement]:
    names = names_of(model, using)
    waiting, active = sorted(WAITING), sorted(ACTIVE)
    now, at = now_parameter(using)
    key_sql, key_params = (KEY_OF_RECORD, []) if key is OF_RECORD else ("%s", [key])
    # The status comes last: MySQL assigns from left to right, and CASE needs the old status.
    statement = (
        "UPDATE {table} SET {finished_at} = {now}, {cancellation} = {key_sql},"
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
        key_sql=key_sql,
        **names,
    )
    before = [*at, *key_params, *waiting, StopState.NEVER_STARTED, StopState.STOPPING]
    before += [*waiting, *at, RunStatus.CANCELLED, *active]
    for condition, params in key_conditions(pks, model, using):
        yield statement + condition, [*before, *params]


def _inserts(
    model: type[Model], values: Mapping[str, Sequence[Any]], using: str
) -> Iterator[Statement]:
    """Yield statements that insert rows without creating model instances.

    A value that is the same in all rows is sent once.
    """
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
    if column.is_time:
        now, at = now_parameter(using)
        return (now if column.is_constant else f"CASE WHEN {name} THEN {now} END"), at
    if not column.is_constant:
        return name, []
    if column.values[0] is OF_RECORD:
        return KEY_OF_RECORD, []
    return placeholder, column.values[:1]


def insert(instance: Model, using: str) -> None:
    """Insert one instance and set its primary key, without the signals of ``save()``.

    Receivers of the host would run while rows are locked.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(*_insertion_of(instance, using))
        # PostgreSQL alone is asked for the key in the statement.
        pk = cursor.fetchone()[0] if cursor.description else cursor.lastrowid
    _mark_inserted(instance, pk, using)


def _insertion_of(instance: Model, using: str) -> Statement:
    statement, fields = _insert_one(type(instance), using)
    connection = connections[using]
    values = [
        field.get_db_prep_save(getattr(instance, field.attname), connection) for field in fields
    ]
    return statement, values


def _mark_inserted(instance: Model, pk: Any, using: str) -> None:
    instance.pk = pk
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
