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
    """Update the single row of a queryset, and return the updated instance.

    The UPDATE is the last query, so that no error can occur after the row has been written.

    Args:
        model: Class of the instance: the queryset's model, or a multi-table subclass of it.
        rows: Queryset of at most one row, filtered by the conditions of the update.
        values: As for ``QuerySet.update()``.

    Returns:
        The updated instance, or None if no row matched. Without RETURNING, fields that the database
        computed are deferred.
    """
    connection = connections[rows.db]
    if connection.vendor in HAVE_UPDATE_RETURNING and rows.model is model:
        query: Any = rows.query.chain(UpdateQuery)
        query.add_update_values(values)
        statement, parameters = query.get_compiler(rows.db).as_sql()
        quote = connection.ops.quote_name
        # Without the table, SQLite would read an unknown quoted column as a string.
        table = quote(model._meta.db_table)
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
    set_written(instance, **values)
    return instance


def set_written(instance: Model, **values: Any) -> None:
    """Set updated values on an instance, and defer those that the database has computed."""
    for name, value in values.items():
        if hasattr(value, "resolve_expression"):
            instance.__dict__.pop(name, None)
        else:
            setattr(instance, name, value)
