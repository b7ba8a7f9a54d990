"""Cursor pagination that answers 422 to sizes and cursors that it cannot use."""

from __future__ import annotations

from typing import Any

from rest_framework.exceptions import ErrorDetail, NotFound
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request

from django_run_cancel.api.exceptions import RequestInvalid
from django_run_cancel.api.fields import parse_utc_datetime

MAX_OFFSET = 100_000
MAX_KEY = 2**63 - 1


class RunPagination(CursorPagination):
    """Pages of runs, the newest first.

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
            message = f"Input should be a whole number from 1 to {self.max_page_size}"
            raise self._invalid(request, self.page_size_query_param, message, "int_parsing")
        return size

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Return the cursor, with a position that the database can compare.

        Raises:
            RequestInvalid: It is none of ours.
        """
        try:
            cursor = super().decode_cursor(request)
        except (NotFound, ValueError):
            raise self._invalid_cursor(request) from None
        if cursor is None:
            return None
        if cursor.offset > MAX_OFFSET:
            raise self._invalid_cursor(request)
        if cursor.position is None:
            return cursor
        position = self.parse_position(str(cursor.position))
        if position is None:
            raise self._invalid_cursor(request)
        return cursor._replace(position=position)

    def parse_position(self, text: str) -> Any:
        """Return a position in the type of the column that the rows are ordered by, or None."""
        return parse_utc_datetime(text)

    def get_paginated_response_schema(self, schema: Any) -> Any:
        """Return the schema of a page, whose links are URIs in the examples too."""
        described: Any = super().get_paginated_response_schema(schema)
        for link in ("next", "previous"):
            example = "https://example.org/v1/runs?cursor=cj0xJnA9NDg3"
            described["properties"][link]["example"] = example
        return described

    def _invalid_cursor(self, request: Request) -> RequestInvalid:
        return self._invalid(request, self.cursor_query_param, "Invalid cursor", "cursor_invalid")

    def _invalid(self, request: Request, name: str, message: str, code: str) -> RequestInvalid:
        detail = {name: [ErrorDetail(message, code)]}
        return RequestInvalid("query", detail, request.query_params)


class CancellationPagination(RunPagination):
    """Pages of cancellations, the newest first."""

    ordering = ("-requested_at", "-pk")


class CancellationItemPagination(RunPagination):
    """Pages of the items of a cancellation, in the order in which they were written."""

    ordering = "id"

    def parse_position(self, text: str) -> int | None:
        """Return the key, or None if it is none."""
        key = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
        return key if 0 <= key <= MAX_KEY else None
