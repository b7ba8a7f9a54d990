"""The clock of the database, which all processes use, as the clocks of their hosts may differ."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections
from django.db.models import DateTimeField, Func
from django.utils import timezone
from django.utils.dateparse import parse_datetime


class DatabaseNow(Func):
    """The current time of the database, for ``filter()`` and ``update()``."""

    output_field = DateTimeField()

    def as_sql(  # type: ignore[override]  # it takes no template
        self, compiler: Any, connection: Any, **context: Any
    ) -> tuple[str, list[Any]]:
        """Return the SQL expression for this database."""
        # Cached on the compiler, so that all expressions of one SQLite statement have one value.
        return vars(compiler).setdefault("database_now_sql", now_sql(connection.alias)), []


def now_sql(using: str) -> str:
    """Return an SQL expression for the current time, as a DateTimeField column stores it."""
    connection = connections[using]
    if connection.vendor == "sqlite":
        # SQLite uses the clock of this host; its own function has only milliseconds.
        return f"'{connection.ops.adapt_datetimefield_value(timezone.now())}'"
    # CURRENT_TIMESTAMP would return the start of the transaction.
    if connection.vendor == "postgresql":
        return "STATEMENT_TIMESTAMP()"
    # Columns use the TIME_ZONE of DATABASES; the server may not know time zone names, so use its
    # offset.
    offset = datetime.now(connection.timezone).utcoffset() or timedelta()
    return f"(UTC_TIMESTAMP(6) + INTERVAL {offset // timedelta(seconds=1)} SECOND)"


def now_parameter(using: str) -> tuple[str, list[Any]]:
    """Return the same as an expression and its parameters.

    SQLite compiles a statement again when its text has changed: there the time is a parameter.
    """
    if connections[using].vendor == "sqlite":
        return "%s", [now_sql(using).strip("'")]
    return now_sql(using), []


def database_now(using: str) -> datetime:
    """Query the current time of a database.

    Args:
        using: Alias of the database.

    Returns:
        The time, in UTC.
    """
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {now_sql(using)}")
        (value,) = cursor.fetchone()
    moment = parse_datetime(value) if isinstance(value, str) else value
    assert isinstance(moment, datetime)  # for mypy  # noqa: S101  # nosec B101
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=connection.timezone)
    return moment.astimezone(UTC)
