"""Partial indexes, which hold only rows that are looked for.

Migrations of hosts name this module: it does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q


class PartialIndex(models.Index):
    """An index of the rows that meet a condition on PostgreSQL, and of all rows elsewhere.

    PostgreSQL writes to each index in which a row belongs whenever any indexed column of the row
    changes. The others write only to the indexes of what has changed; SQLite uses a partial index
    only for the very same condition, and MySQL and MariaDB have none. Django ignores, with a
    warning, indexes with its own ``condition`` on MySQL and MariaDB.
    """

    vendors: ClassVar[set[str]] = {"postgresql"}

    def __init__(self, *, fields: Sequence[str], where: Q, name: str | None = None) -> None:
        super().__init__(fields=fields, name=name)
        self.where = where

    def create_sql(
        self, model: type[models.Model], schema_editor: Any, using: str = "", **kwargs: Any
    ) -> Any:
        """Return the statement that creates the index on this database."""
        index = models.Index(fields=self.fields, name=self.name)
        if schema_editor.connection.vendor in self.vendors:
            index.condition = self.where
        return index.create_sql(model, schema_editor, using, **kwargs)

    def deconstruct(self) -> Any:
        """Return what a migration needs to make the same index."""
        path, expressions, kwargs = super().deconstruct()
        return path, expressions, {**kwargs, "where": self.where}


class NotNullIndex(PartialIndex):
    """An index of the rows in which its first field has a value, on SQLite too."""

    vendors: ClassVar[set[str]] = {"postgresql", "sqlite"}

    def __init__(self, *, fields: Sequence[str], name: str | None = None) -> None:
        super().__init__(fields=fields, where=Q(**{f"{fields[0]}__isnull": False}), name=name)

    def deconstruct(self) -> Any:
        """Return what a migration needs to make the same index."""
        path, expressions, kwargs = super().deconstruct()
        del kwargs["where"]
        return path, expressions, kwargs
