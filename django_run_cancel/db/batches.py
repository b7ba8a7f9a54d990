"""``batches()``: reads the primary keys of many rows in batches, by keyset pagination."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db.models import Q, QuerySet

BATCH_SIZE = 500
"""Maximum number of rows to lock in one transaction. For longer lists, MariaDB scans the table."""


def batches(
    rows: QuerySet[Any], field: str, *, size: int = BATCH_SIZE, descending: bool = False
) -> Iterator[list[Any]]:
    """Yield lists of primary keys, in the order of an indexed field that is never null.

    Each batch starts after the last row of the previous one, so that a row which the caller could
    not update is not returned again.

    Args:
        rows: The rows.
        field: Name of the field; rows with the same value are ordered by primary key.
        size: Number of keys in one batch.
        descending: Whether to start with the greatest value.
    """
    sign, operator = ("-", "lt") if descending else ("", "gt")
    ordered = rows.order_by(f"{sign}{field}", f"{sign}pk").values_list("pk", field)
    batch = list(ordered[:size])
    while batch:
        yield [pk for pk, _ in batch]
        pk, value = batch[-1]
        after_last = Q(**{f"{field}__{operator}": value}) | Q(
            **{field: value, f"pk__{operator}": pk}
        )
        # The redundant ``lte`` or ``gte`` condition lets the database use the index.
        batch = list(ordered.filter(after_last, **{f"{field}__{operator}e": value})[:size])
