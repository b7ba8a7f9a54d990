"""Writes in SQL: UPDATE of cancelled runs, INSERT of cancellations and items, and NOTIFY."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connections
from django.db.models import Model

from django_run_cancel.db.clock import now_sql
from django_run_cancel.db.conditions import unindexed_sql
from django_run_cancel.db.statements import (
    MAX_PARAMETERS,
    chunks,
    column_of,
    key_conditions,
    names_of,
    placeholders,
)
from django_run_cancel.states import ACTIVE, WAITING, RunStatus, StopState

NOW: Any = object()
"""Placeholder for the database's current time in the values of ``insert_rows``."""

CHANNEL = "run_cancel"
"""PostgreSQL channel that announces cancellations to listening processes."""


def write_cancelled(model: type[Model], pks: Iterable[Any], cancellation: int, using: str) -> None:
    """Set active runs, whose rows are locked, to ``cancelled``.

    Args:
        model: The run model.
        pks: Primary keys of the runs.
        cancellation: Primary key of the cancellation.
        using: Alias of the database.
    """
    names = names_of(model, using)
    waiting, active = sorted(WAITING), sorted(ACTIVE)
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
        now=now_sql(using),
        **names,
    )
    before: list[Any] = [cancellation, *waiting, StopState.NEVER_STARTED, StopState.STOPPING]
    before += [*waiting, RunStatus.CANCELLED, *active]
    for condition, params in key_conditions(pks, model, using):
        with connections[using].cursor() as cursor:
            cursor.execute(statement + condition, [*before, *params])


def insert_rows(
    model: type[Model], names: Sequence[str], rows: Iterable[Sequence[Any]], using: str
) -> None:
    """Insert rows of database-ready values, without creating model instances.

    A value that is the same in all rows is sent once. The value ``NOW`` inserts the current time of
    the database.

    Args:
        model: The model.
        names: Names of the fields.
        rows: One sequence of values for each row, in the order of ``names``.
        using: Alias of the database.
    """
    for chunk in chunks(rows, MAX_PARAMETERS // len(names)):
        columns = [_Column(values) for values in zip(*chunk, strict=True)]
        fields = [model._meta.get_field(name) for name in names]
        source = _unnest if connections[using].vendor == "postgresql" else _values_list
        select, params = source(fields, columns, using)
        quote = connections[using].ops.quote_name
        into = ", ".join(quote(column_of(field)) for field in fields)
        with connections[using].cursor() as cursor:
            cursor.execute(f"INSERT INTO {quote(model._meta.db_table)} ({into}) {select}", params)


class _Column:
    """The values of one column, for all rows to insert."""

    def __init__(self, values: Sequence[Any]) -> None:
        first = values[0]
        self.is_constant = all(value is first or value == first for value in values)
        self.is_time = any(value is NOW for value in values)
        # A column of times holds only NOW and None: send booleans instead.
        self.values = [value is NOW for value in values] if self.is_time else list(values)


def _unnest(fields: Sequence[Any], columns: Sequence[_Column], using: str) -> tuple[str, list[Any]]:
    """Return a SELECT from ``unnest()`` of arrays, which needs one placeholder for each column."""
    connection = connections[using]
    shown, arrays, constants, lists = [], [], [], []
    for number, (field, column) in enumerate(zip(fields, columns, strict=True)):
        kind = "boolean" if column.is_time else field.rel_db_type(connection)
        if column.is_constant:
            shown.append(_shown(column, f"%s::{kind}", using))
            constants.append(column.values[0])
        else:
            shown.append(_shown(column, f"v.c{number}", using))
            arrays.append((f"c{number}", f"%s::{kind}[]"))
            lists.append(column.values)
    if not arrays:
        arrays, lists = [("one", "%s::int[]")], [[1] * len(columns[0].values)]
    names, types = zip(*arrays, strict=True)
    source = f"unnest({', '.join(types)}) AS v ({', '.join(names)})"
    return f"SELECT {', '.join(shown)} FROM {source}", [*constants, *lists]


def _values_list(
    fields: Sequence[Any], columns: Sequence[_Column], using: str
) -> tuple[str, list[Any]]:
    """Return a SELECT from VALUES, with placeholders for all columns that are not constant."""
    connection = connections[using]
    is_mysql = connection.vendor == "mysql" and not getattr(connection, "mysql_is_mariadb", False)
    shown, names, constants, lists = [], [], [], []
    for number, column in enumerate(columns):
        if column.is_constant:
            shown.append(_shown(column, "%s", using))
            constants.append(column.values[0])
        else:
            shown.append(_shown(column, f"v.c{number}", using))
            names.append(f"c{number}")
            lists.append(column.values)
    if not names:
        names, lists = ["one"], [[1] * len(columns[0].values)]
    row = ("ROW" if is_mysql else "") + f"({placeholders(names)})"
    rows = ", ".join([row] * len(lists[0]))
    select = f"WITH v ({', '.join(names)}) AS (VALUES {rows}) SELECT {', '.join(shown)} FROM v"
    in_rows = [value for values in zip(*lists, strict=True) for value in values]
    return select, [*in_rows, *constants]


def _shown(column: _Column, value: str, using: str) -> str:
    if not column.is_time:
        return value
    now = now_sql(using)
    return f"CASE WHEN {value} THEN {now} END"


def insert(instance: Model, using: str) -> None:
    """Insert one instance and set its primary key, without the signals of ``save()``.

    Receivers of the host would run while rows are locked.
    """
    connection = connections[using]
    quote = connection.ops.quote_name
    meta = instance._meta
    fields = [field for field in meta.concrete_fields if not field.primary_key]
    columns = ", ".join(quote(column_of(field)) for field in fields)
    statement = f"INSERT INTO {quote(meta.db_table)} ({columns}) VALUES ({placeholders(fields)})"
    values = [
        field.get_db_prep_save(getattr(instance, field.attname), connection) for field in fields
    ]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"{statement} RETURNING {quote(column_of(meta.pk))}", values)
            (instance.pk,) = cursor.fetchone()
        else:
            cursor.execute(statement, values)
            instance.pk = cursor.lastrowid
    instance._state.adding = False
    instance._state.db = using


def notify(using: str) -> None:
    """Notify listening processes, when the transaction commits, that runs have been cancelled."""
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")
