"""Indexes of PostgreSQL for the search in the admin: created by a command, used where they exist.

No model declares them. A change of a run's status would write an entry for each trigram of the
title, and the extension ``pg_trgm`` needs rights that a migration may not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from django.db import connections
from django.db.models import Model

from django_run_cancel.db.statements import column_of

EXTENSION = "pg_trgm"

Kind = Literal["words", "prefix"]
"""What is looked for: words anywhere in the text, or the beginning of the text."""

INDEXES_OF_TABLE = """
    SELECT pg_get_indexdef(i.indexrelid, 1, true), o.opcname,
        coalesce(pg_get_expr(i.indpred, i.indrelid, true), ''), quote_ident(%s)
    FROM pg_index i JOIN pg_opclass o ON o.oid = i.indclass[0]
    WHERE i.indrelid = to_regclass(%s) AND i.indisvalid
"""


class SearchIndex(NamedTuple):
    """An index of a column that is searched.

    Attributes:
        model: Its model; of a subclass with a table of its own, that which has the column.
        column: The column.
        kind: Which search it serves.
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
        """Tell whether the database has a finished index that serves this search.

        Its name does not matter: hosts may have created it themselves.
        """
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
        # One that was interrupted is left behind, invalid.
        yield f"DROP INDEX CONCURRENTLY IF EXISTS {name}"
        create = f"CREATE INDEX CONCURRENTLY {name} ON {quote(table)}"
        if self.kind == "words":
            # What the lookup icontains compares.
            yield f"{create} USING gin (upper({column}::text) gin_trgm_ops)"
        else:
            yield f"{create} ({column}) WHERE {column} <> ''"
