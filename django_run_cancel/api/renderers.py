"""Content negotiation and rendering: all responses are JSON, regardless of ``Accept``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request


class ASCIIJSONRenderer(JSONRenderer):
    """JSON in ASCII, which can echo lone surrogates that no charset can encode."""

    ensure_ascii = True
    compact = True
    strict = True


class JSONNegotiation(BaseContentNegotiation):
    """Accepts ``application/json`` and ``application/…+json`` bodies, and responds with JSON."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        """Return the parser, or None for a body of another type."""
        media_type = (request.content_type or "").partition(";")[0].strip().lower()
        is_json = media_type == "application/json" or (
            media_type.startswith("application/") and media_type.endswith("+json")
        )
        return next(iter(parsers)) if is_json else None

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the renderer and its media type."""
        renderer: Any = next(iter(renderers))
        return renderer, renderer.media_type
