"""Partial indexes, which contain only the rows that queries look for.

Do not move this module: migrations of hosts import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q


class PartialIndex(models.Index):
    """An index with a condition on PostgreSQL, and a full index on other databases.

    When an indexed column of a row changes, PostgreSQL writes to all indexes that contain the row;
    other databases write only to the indexes of that column. SQLite uses a partial index only if
    the query has the same condition, and MySQL and MariaDB have none: Django would ignore an index
    with ``condition`` there, with a warning.
    """

    vendors: ClassVar[set[str]] = {"postgresql"}

    def __init__(self, *, fields: Sequence[str], where: Q, name: str | None = None) -> None:
        super().__init__(fields=fields, name=name)
        self.where = where

    def create_sql(
        self, model: type[models.Model], schema_editor: Any, using: str = "", **kwargs: Any
    ) -> Any:
        """Return the statement that creates the index, with the condition if supported."""
        index = models.Index(fields=self.fields, name=self.name)
        if schema_editor.connection.vendor in self.vendors:
            index.condition = self.where
        return index.create_sql(model, schema_editor, using, **kwargs)

    def deconstruct(self) -> Any:
        """Return what a migration needs to make the same index."""
        path, expressions, kwargs = super().deconstruct()
        return path, expressions, {**kwargs, "where": self.where}


class NotNullIndex(PartialIndex):
    """An index of the rows in which its first field is not null, on PostgreSQL and SQLite."""

    vendors: ClassVar[set[str]] = {"postgresql", "sqlite"}

    def __init__(self, *, fields: Sequence[str], name: str | None = None) -> None:
        super().__init__(fields=fields, where=Q(**{f"{fields[0]}__isnull": False}), name=name)

    def deconstruct(self) -> Any:
        """Return what a migration needs to make the same index."""
        path, expressions, kwargs = super().deconstruct()
        del kwargs["where"]
        return path, expressions, kwargs
