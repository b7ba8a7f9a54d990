"""SQL fragments and parameter lists shared by the modules of this folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from django.db import connections
from django.db.models import Model

T = TypeVar("T")

Statement = tuple[str, list[Any]]
"""SQL and its parameters."""

MAX_PARAMETERS = 30_000
"""Maximum parameters of a statement: SQLite allows 32,766; PostgreSQL, with binding, 65,535."""

MAX_LISTED_ON_MYSQL = 900
"""Maximum values in an IN list: MariaDB converts 1,000 or more to a subquery, and then scans and
locks all rows of the table."""

COLUMNS = (
    *("parent", "run_id", "tenant", "status", "backend", "external_id", "started_at"),
    *("finished_at", "cancellation", "stop_state", "stopped_at"),
)


@lru_cache(100)
def names_of(model: type[Model], using: str) -> Mapping[str, str]:
    """Return the quoted names of the table of runs, its key and its columns."""
    quote = connections[using].ops.quote_name
    meta = table_model(model)._meta
    columns = {name: quote(column_of(meta.get_field(name))) for name in COLUMNS}
    return {"table": quote(meta.db_table), "pk": quote(column_of(meta.pk)), **columns}


def table_model(model: type[Model]) -> Any:
    """Return the model of the table of runs; with multi-table inheritance, that of the base."""
    return model._meta.get_field("status").model


def column_of(field: Any) -> str:
    column: str = field.column
    return column


def lock_clause(using: str) -> str:
    features = connections[using].features
    if not features.has_select_for_update:
        return ""  # SQLite: a writing transaction locks the whole database
    # FOR NO KEY UPDATE does not block inserts of rows that reference the run.
    no_key = features.has_select_for_no_key_update
    return " " + connections[using].ops.for_update_sql(no_key=no_key)


def key_conditions(
    pks: Iterable[Any], model: type[Model], using: str, limit: int = MAX_PARAMETERS - 100
) -> Iterator[Statement]:
    """Yield pairs of an SQL condition and its parameters: ``IN (…)``, to append to a column.

    PostgreSQL gets one array, as its driver is slow with one placeholder for each key.
    """
    connection = connections[using]
    if connection.vendor == "postgresql":
        if keys := sorted(pks):
            yield f"= ANY (%s::{key_type(model, using)}[])", [array_parameter(keys)]
        return
    if connection.vendor == "mysql":
        limit = min(limit, MAX_LISTED_ON_MYSQL)
    for chunk in chunks(sorted(pks), limit):
        yield f"IN ({placeholders(chunk)})", chunk


def text_condition(values: Collection[str], using: str) -> Statement:
    """Return a condition to append to a text column, like one of ``key_conditions``."""
    if connections[using].vendor == "postgresql":
        return "= ANY (%s::text[])", [array_parameter(list(values))]
    return f"IN ({placeholders(values) or 'NULL'})", list(values)


def array_parameter(values: Sequence[Any]) -> str | list[Any]:
    """Return an array for PostgreSQL: as the text of a literal, or as a list for the driver.

    psycopg needs six times as long to write the literal from a list. The statement casts it.

    Args:
        values: The values. If they are not all integers or all strings, the driver gets the list.
    """
    if all(type(value) is int for value in values):
        return "{" + ",".join(map(str, values)) + "}"
    if all(isinstance(value, str) for value in values):
        escaped = [value.replace("\\", r"\\").replace('"', r"\"") for value in values]
        return '{"' + '","'.join(escaped) + '"}'
    return list(values)


@lru_cache(100)
def key_type(model: type[Model], using: str) -> Any:
    return table_model(model)._meta.pk.rel_db_type(connections[using])


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk


def placeholders(values: Sized) -> str:
    return ", ".join(["%s"] * len(values))


def execute(using: str, sql: str, params: Sequence[Any]) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute(sql, params)


def fetch(using: str, sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    with connections[using].cursor() as cursor:
        cursor.execute(sql, params)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows
