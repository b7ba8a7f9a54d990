"""``Rotation``: reads due rows in batches, and continues after rows that could not be updated.

A row that the database refuses to update stays due. Without rotation, a full batch of such rows
would be read again and again, and block all later rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from django.db import connections, transaction
from django.db.models import Q, QuerySet


class Rotation:
    """Position of this process in the rows of a queue, ordered by one field."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._last_row: tuple[Any, Any] | None = None
        self._window: list[tuple[Any, Any]] = []
        self._limit = 0
        self._ended_at = float("-inf")

    def window(self, rows: QuerySet[Any], limit: int) -> list[Any]:
        """Return the next due rows that are not locked. Call ``advance()`` after processing them.

        Args:
            rows: The due rows.
            limit: Maximum number of rows.
        """
        rows = rows.order_by(self._field, "pk")
        window = []
        if self._last_row is not None:
            value, pk = self._last_row
            same_value = Q(**{self._field: value}, pk__gt=pk)
            after_last = Q(**{f"{self._field}__gt": value}) | same_value
            window = _unlocked(rows.filter(after_last), limit)
        if not window:  # restart at once: an empty window would tell callers that nothing is due
            window = _unlocked(rows, limit)
        self._window = [(getattr(row, self._field), row.pk) for row in window]
        self._limit = limit
        if len(window) < limit:
            self._ended_at = time.monotonic()
        return window

    def advance(self, written: Iterable[Any]) -> None:
        """Continue after the window if some of its rows were not updated; else restart.

        Args:
            written: Primary keys of the updated rows.
        """
        is_last = len(self._window) < self._limit
        refused = {pk for _, pk in self._window}.difference(written)
        self._last_row = None if is_last or not refused else self._window[-1]

    def ended_within(self, seconds: float) -> bool:
        """Tell whether ``window()`` has reached the last row within the last ``seconds``."""
        return time.monotonic() < self._ended_at + seconds


def _unlocked(rows: QuerySet[Any], limit: int) -> list[Any]:
    features = connections[rows.db].features
    if not features.has_select_for_update_skip_locked:
        return list(rows[:limit])
    with transaction.atomic(using=rows.db):
        unlocked = rows.select_for_update(
            skip_locked=True, no_key=features.has_select_for_no_key_update
        )
        return list(unlocked[:limit])
