"""Conditions of writes on indexed columns, which must not be what finds the row.

MySQL and MariaDB find a row through the index of its status, rather than by its key, where few rows
have that status. The statement then locks the entry of the index before the row; a cancellation has
locked the row and waits for the entry, to change it: a deadlock. Without the index, the row is the
first thing that every statement locks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import CharField, F, Func
from django.db.models.lookups import In


class Unindexed(Func):
    """The value of a column, for conditions that no index may serve on MySQL and MariaDB."""

    function = "CONCAT"
    arity = 1
    output_field = CharField()

    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, list[Any]]:  # type: ignore[override]  # it takes no template
        """Return the SQL of the plain column, but on MySQL and MariaDB that of a function of it."""
        if connection.vendor == "mysql":
            sql, params = super().as_sql(compiler, connection, **context)
        else:
            sql, params = compiler.compile(self.get_source_expressions()[0])
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
    return f"CONCAT({column})" if vendor == "mysql" else column
