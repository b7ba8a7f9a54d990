"""Reading the keys of many rows in batches, each after the last one of the batch before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db.models import Q, QuerySet

BATCH_SIZE = 500
"""Rows that are locked in one transaction. MariaDB reads all rows if asked for many more keys."""


def batches(
    rows: QuerySet[Any], field: str, *, size: int = BATCH_SIZE, descending: bool = False
) -> Iterator[list[Any]]:
    """Yield the keys of rows in batches, in the order of an indexed field that is never null.

    Rows that stay as they are, because they cannot be written, are passed over.

    Args:
        rows: The rows.
        field: The field; rows with the same value are ordered by their keys.
        size: Keys in one batch.
        descending: Whether to begin with the greatest value.
    """
    sign, after = ("-", "lt") if descending else ("", "gt")
    ordered = rows.order_by(f"{sign}{field}", f"{sign}pk").values_list("pk", field)
    batch = list(ordered[:size])
    while batch:
        yield [pk for pk, _ in batch]
        pk, value = batch[-1]
        beyond = Q(**{f"{field}__{after}": value}) | Q(**{field: value, f"pk__{after}": pk})
        # The first condition lets the database use the index.
        batch = list(ordered.filter(beyond, **{f"{field}__{after}e": value})[:size])
