"""``update_and_read()``: updates one row and reads it, with UPDATE … RETURNING if possible."""

from __future__ import annotations

from typing import Any, TypeVar

from django.db import connections
from django.db.models import Model, QuerySet
from django.db.models.sql import UpdateQuery

from django_run_cancel.db.statements import column_of

M = TypeVar("M", bound=Model)

HAVE_UPDATE_RETURNING = {"postgresql", "sqlite"}


def update_and_read(model: type[M], rows: QuerySet[Any], **values: Any) -> M | None:
    """Update the row that a queryset finds, and return it.

    Nothing that can fail comes after the statement that writes.

    Args:
        model: What to return: the queryset's model, or a subclass with a table of its own.
        rows: The row, with the conditions on which it is written.
        values: As for ``QuerySet.update()``.

    Returns:
        The row as it is now, or None if none was found. Where the database returned nothing,
        values that it computed are loaded when they are asked for.
    """
    connection = connections[rows.db]
    if connection.vendor in HAVE_UPDATE_RETURNING and rows.model is model:
        query: Any = rows.query.chain(UpdateQuery)
        query.add_update_values(values)
        statement, parameters = query.get_compiler(rows.db).as_sql()
        quote = connection.ops.quote_name
        table = quote(model._meta.db_table)  # or SQLite takes unknown columns for texts
        columns = ", ".join(
            f"{table}.{quote(column_of(field))}" for field in model._meta.concrete_fields
        )
        returning = model._base_manager.using(rows.db).raw(
            f"{statement} RETURNING {columns}", parameters
        )
        return next(iter(list(returning)), None)
    instance = model._base_manager.using(rows.db).filter(pk__in=rows.values("pk")).first()
    if instance is None or not rows.filter(pk=instance.pk).update(**values):
        return None
    note(instance, **values)
    return instance


def note(instance: Model, **values: Any) -> None:
    """Set on an instance what has been written; what the database computes is loaded when asked."""
    for name, value in values.items():
        if hasattr(value, "resolve_expression"):
            instance.__dict__.pop(name, None)
        else:
            setattr(instance, name, value)
