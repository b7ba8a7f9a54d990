"""Cursor pagination that takes any cursor a client may send."""

from __future__ import annotations

from typing import Any

from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request

from django_run_cancel.api.errors import RequestInvalid, problem
from django_run_cancel.api.parsing import read_moment

MAX_OFFSET = 100_000
MAX_KEY = 2**63 - 1


class NewestFirst(CursorPagination):
    """Pages of the newest rows first, by the time in ``ordering``.

    The key decides between rows of the same time, or they could change places between two pages.
    """

    page_size = 50
    max_page_size = 100
    page_size_query_param = "page_size"
    page_size_query_description = "Rows per page, 1 to 100; 50 by default."
    cursor_query_description = "Where to go on: take it from `next` or `previous`."
    ordering: str | tuple[str, ...] = ("-created_at", "-pk")
    # DRF's bound would repeat a page for ever when a thousand rows share a timestamp.
    offset_cutoff = None  # type: ignore[assignment]  # DRF takes None as no bound

    def get_page_size(self, request: Request) -> int:
        """Return the size asked for, or the default.

        Raises:
            RequestInvalid: It is no number from 1 to 100.
        """
        asked = request.query_params.get(self.page_size_query_param)
        if asked is None:
            return self.page_size
        size = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) <= 3 else 0
        if not 1 <= size <= self.max_page_size:
            msg = f"Input should be a whole number from 1 to {self.max_page_size}"
            raise RequestInvalid(
                problem("int_parsing", ["query", self.page_size_query_param], msg, asked)
            )
        return size

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Return the cursor, with a position that the database can compare.

        Raises:
            RequestInvalid: It is none of ours.
        """
        try:
            cursor = super().decode_cursor(request)
            if cursor is None:
                return None
            if cursor.offset > MAX_OFFSET:
                raise NotFound
            if cursor.position is None:
                return cursor
            return cursor._replace(position=self.read_position(str(cursor.position)))
        except (NotFound, RequestInvalid, ValueError):
            sent = request.query_params.get(self.cursor_query_param)
            raise RequestInvalid(
                problem("cursor_invalid", ["query", "cursor"], "Invalid cursor", sent)
            ) from None

    def read_position(self, position: str) -> Any:
        """Return the position in the type of the column that the rows are ordered by."""
        return read_moment(position, [])


class NewestRequestFirst(NewestFirst):
    """The same for cancellations."""

    ordering = ("-requested_at", "-pk")


class InOrder(NewestFirst):
    """Pages in the order in which the rows were written."""

    ordering = "id"

    def read_position(self, position: str) -> int:
        """Return the key."""
        key = int(position)
        if not 0 <= key <= MAX_KEY:
            raise ValueError
        return key
