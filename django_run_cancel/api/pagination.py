"""Cursor pagination that responds with 422 to invalid page sizes and cursors."""

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

    The primary key orders rows with the same time, which could otherwise swap between two pages.
    """

    page_size = 50
    max_page_size = 100
    page_size_query_param = "page_size"
    page_size_query_description = "Rows per page, 1 to 100; 50 by default."
    cursor_query_description = "Where to go on: take it from `next` or `previous`."
    ordering: str | tuple[str, ...] = ("-created_at", "-pk")
    # With DRF's limit, clients would read the same page forever if 1,000 rows share a timestamp.
    offset_cutoff = None  # type: ignore[assignment]  # DRF takes None as no bound

    def get_page_size(self, request: Request) -> int:
        """Return the requested page size, or the default.

        Raises:
            RequestInvalid: The size is not a number from 1 to 100.
        """
        requested = request.query_params.get(self.page_size_query_param)
        if requested is None:
            return self.page_size
        is_number = requested.isascii() and requested.isdecimal() and len(requested) <= 3
        size = int(requested) if is_number else 0
        if not 1 <= size <= self.max_page_size:
            message = f"Input should be a whole number from 1 to {self.max_page_size}"
            raise self._invalid(request, self.page_size_query_param, message, "int_parsing")
        return size

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Return the cursor, with its position in the type of the column.

        Raises:
            RequestInvalid: The cursor is invalid.
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
        """Convert a position to the type of the ordering column; None if it is invalid."""
        return parse_utc_datetime(text)

    def get_paginated_response_schema(self, schema: Any) -> Any:
        """Return the schema of a page, with URIs as examples of its links."""
        page_schema: Any = super().get_paginated_response_schema(schema)
        for link in ("next", "previous"):
            example = "https://example.org/v1/runs?cursor=cj0xJnA9NDg3"
            page_schema["properties"][link]["example"] = example
        return page_schema

    def _invalid_cursor(self, request: Request) -> RequestInvalid:
        return self._invalid(request, self.cursor_query_param, "Invalid cursor", "cursor_invalid")

    def _invalid(self, request: Request, name: str, message: str, code: str) -> RequestInvalid:
        detail = {name: [ErrorDetail(message, code)]}
        return RequestInvalid("query", detail, request.query_params)


class CancellationPagination(RunPagination):
    """Pages of cancellations, the newest first."""

    ordering = ("-requested_at", "-pk")


class CancellationItemPagination(RunPagination):
    """Pages of a cancellation's items, in the order of their primary keys."""

    ordering = "id"

    def parse_position(self, text: str) -> int | None:
        """Convert a position to a primary key; None if it is invalid."""
        key = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
        return key if 0 <= key <= MAX_KEY else None
