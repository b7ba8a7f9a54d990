"""The clock of the database: what hosts compare with each other is its time, not their own."""

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
        """Return the SQL of this database."""
        # Kept with the compiler, so that it is the same everywhere in a statement on SQLite too.
        return vars(compiler).setdefault("database_now_sql", now_sql(connection.alias)), []


def now_sql(using: str) -> str:
    """Return the SQL expression of the current time, as a column of a time holds it."""
    connection = connections[using]
    if connection.vendor == "sqlite":
        # Its clock is that of this host, and its own function has only milliseconds.
        return f"'{connection.ops.adapt_datetimefield_value(timezone.now())}'"
    # Unlike CURRENT_TIMESTAMP these do not stand still in a transaction.
    if connection.vendor == "postgresql":
        return "STATEMENT_TIMESTAMP()"
    # Columns are in the TIME_ZONE of the database's settings, whose name the server may not know.
    offset = datetime.now(connection.timezone).utcoffset() or timedelta()
    return f"(UTC_TIMESTAMP(6) + INTERVAL {offset // timedelta(seconds=1)} SECOND)"


def database_now(using: str) -> datetime:
    """Ask a database for its current time.

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
