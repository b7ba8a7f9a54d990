"""``Rotation``: reads due rows in batches, and goes on behind rows that could not be written.

A row that a trigger refuses stays due. Without this, as many of them as a window has rows would
keep all others waiting.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from django.db import connections, transaction
from django.db.models import Q, QuerySet


class Rotation:
    """The position of this process among rows in one order."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._after: tuple[Any, Any] | None = None
        self._window: list[tuple[Any, Any]] = []
        self._limit = 0
        self._ended_at = float("-inf")

    def window(self, rows: QuerySet[Any], limit: int) -> list[Any]:
        """Return the next rows that nobody has locked at this moment.

        Call ``advance`` when they have been dealt with.

        Args:
            rows: The rows that are due.
            limit: How many at most.
        """
        rows = rows.order_by(self._field, "pk")
        found = []
        if self._after is not None:
            value, pk = self._after
            same = Q(**{self._field: value}, pk__gt=pk)
            found = _unlocked(rows.filter(Q(**{f"{self._field}__gt": value}) | same), limit)
        if not found:  # behind the last row: whoever stops when nothing is left must not stop yet
            found = _unlocked(rows, limit)
        self._window = [(getattr(row, self._field), row.pk) for row in found]
        self._limit = limit
        if len(found) < limit:
            self._ended_at = time.monotonic()
        return found

    def advance(self, written: Iterable[Any]) -> None:
        """Go on behind the window if rows of it could not be written; else start at the first.

        Args:
            written: The keys that were written.
        """
        is_last = len(self._window) < self._limit
        refused = {pk for _, pk in self._window}.difference(written)
        self._after = None if is_last or not refused else self._window[-1]

    def ended_within(self, seconds: float) -> bool:
        """Tell whether the window with the last of all rows was read so recently."""
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
