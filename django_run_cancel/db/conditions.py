"""Conditions on indexed columns of rows that are found by their keys.

MySQL and MariaDB find a row through the index of its status, rather than by its key, where few rows
have that status. The statement then locks the entry of the index before the row; a cancellation has
locked the row and waits for the entry, to change it: a deadlock. Without the index, the row is the
first thing that every statement locks.

PostgreSQL does the same where few rows had that status when the table was last analyzed, and reads
the entries of all that have it now, and of those that had it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import CharField, F, Func
from django.db.models.lookups import In


class Unindexed(Func):
    """The value of a column, for conditions that no index may serve; plain on SQLite."""

    function = "CONCAT"
    arity = 1
    output_field = CharField()

    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, list[Any]]:  # type: ignore[override]  # it takes no template
        """Return the SQL of a function of the column; on SQLite, that of the column."""
        if connection.vendor == "sqlite":
            sql, params = compiler.compile(self.get_source_expressions()[0])
        else:
            sql, params = super().as_sql(compiler, connection, **context)
        return sql, list(params)


def is_one_of(name: str, values: Iterable[str]) -> In:
    """Return the condition that an indexed column has one of these values.

    Args:
        name: Of the field.
        values: The values.
    """
    return In(Unindexed(F(name)), sorted(values))


def unindexed_sql(column: str, vendor: str) -> str:
    """Return the SQL of a quoted column, for conditions that no index may serve."""
    return column if vendor == "sqlite" else f"CONCAT({column})"
