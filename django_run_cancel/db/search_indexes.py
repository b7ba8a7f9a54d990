"""Optional PostgreSQL indexes for the admin's search, created by a management command.

They are not part of the migrations: each change of a run's status must update an entry for each
trigram of the title, and creating the extension ``pg_trgm`` may need a superuser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from django.db import connections
from django.db.models import Model

from django_run_cancel.db.statements import column_of

EXTENSION = "pg_trgm"

Kind = Literal["words", "prefix"]
"""Kind of search: words anywhere in the text, or a prefix of the text."""

INDEXES_OF_TABLE = """
    SELECT pg_get_indexdef(i.indexrelid, 1, true), o.opcname,
        coalesce(pg_get_expr(i.indpred, i.indrelid, true), ''), quote_ident(%s)
    FROM pg_index i JOIN pg_opclass o ON o.oid = i.indclass[0]
    WHERE i.indrelid = to_regclass(%s) AND i.indisvalid
"""


class SearchIndex(NamedTuple):
    """An index for searching one column.

    Attributes:
        model: The model whose table has the column; with multi-table inheritance, the base.
        column: Name of the column.
        kind: The kind of search.
    """

    model: type[Model]
    column: str
    kind: Kind

    @classmethod
    def of(cls, model: type[Model], field_name: str, kind: Kind) -> SearchIndex:
        """Return the index of a field of a model."""
        field: Any = model._meta.get_field(field_name)
        return cls(field.model, column_of(field), kind)

    def exists(self, using: str) -> bool:
        """Tell whether the database has a valid index for this search, under any name."""
        connection = connections[using]
        if connection.vendor != "postgresql":
            return False
        table = connection.ops.quote_name(self.model._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(INDEXES_OF_TABLE, [self.column, table])
            return any(
                (key, opclass, where) in self._definitions(column)
                for key, opclass, where, column in cursor.fetchall()
            )

    def _definitions(self, column: str) -> Iterator[tuple[str, str, str]]:
        if self.kind == "words":
            for key in (f"upper({column}::text)", f"upper({column})"):
                yield key, "gin_trgm_ops", ""
            return
        for opclass in ("text_ops", "varchar_ops"):
            yield column, opclass, ""
            yield column, opclass, f"{column}::text <> ''::text"

    def statements(self, using: str) -> Iterator[str]:
        """Yield the statements that create the index without locking the table against writes."""
        quote = connections[using].ops.quote_name
        table = self.model._meta.db_table
        name = quote(f"{table[:40]}_{self.column[:12]}_{self.kind}")
        column = quote(self.column)
        # An interrupted CREATE INDEX CONCURRENTLY leaves an invalid index.
        yield f"DROP INDEX CONCURRENTLY IF EXISTS {name}"
        create = f"CREATE INDEX CONCURRENTLY {name} ON {quote(table)}"
        if self.kind == "words":
            # The expression in the SQL of the lookup ``icontains``.
            yield f"{create} USING gin (upper({column}::text) gin_trgm_ops)"
        else:
            yield f"{create} ({column}) WHERE {column} <> ''"
