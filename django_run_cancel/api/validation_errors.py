"""Converts REST framework's validation errors to the format of the contract, that of FastAPI.

An entry is ``{"type", "loc", "msg", "input", "ctx"}``. Fields of this package use the contract's
types as error codes; ``CONTRACT_TYPES`` maps the codes of REST framework's own fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rest_framework.exceptions import ErrorDetail
from rest_framework.settings import api_settings

from django_run_cancel.api.fields import MAX_IDS_PER_REQUEST

Location = Literal["body", "query", "header"]

CONTRACT_TYPES: dict[str, tuple[str | None, str]] = {
    "required": ("missing", "Field required"),
    "null": ("missing", "Field required"),
    "invalid": (
        "model_attributes_type",
        "Input should be a valid dictionary or object to extract fields from",
    ),
}

MAX_DEPTH = 2
MAX_ITEMS = 3
MAX_CHARACTERS = 100


def contract_entries(detail: Any, loc: Sequence[str | int], sent: Any) -> list[dict[str, Any]]:
    """Return the entries of ``detail`` in a response.

    Args:
        detail: ``ValidationError.detail`` or ``serializer.errors``.
        loc: Location of the validated part of the request, such as ``["body"]``.
        sent: The invalid value of this part.
    """
    leaves = list(_leaves(detail, list(loc), sent))
    # Echo nested values only for a single error, to limit the size of the response.
    depth = MAX_DEPTH if len(leaves) == 1 else 0
    return [_entry(error, error_loc, value, depth) for error, error_loc, value in leaves]


def _leaves(
    detail: Any, loc: list[str | int], sent: Any
) -> Iterator[tuple[ErrorDetail, list[str | int], Any]]:
    if isinstance(detail, Mapping):
        for key, inner in detail.items():
            if key == api_settings.NON_FIELD_ERRORS_KEY:
                yield from _leaves(inner, loc, sent)
            else:
                yield from _leaves(inner, [*loc, echo(key)], _part(sent, key))
    else:
        for error in detail:
            # A missing field has no value: echo the object that lacks it.
            yield error, loc, sent


def _part(sent: Any, key: Any) -> Any:
    return sent[key] if isinstance(sent, list) else sent.get(key, sent)


def _entry(error: ErrorDetail, loc: list[str | int], value: Any, depth: int) -> dict[str, Any]:
    kind, message = CONTRACT_TYPES.get(error.code or "", (error.code, str(error)))
    entry: dict[str, Any] = {"type": kind, "loc": loc, "msg": message, "input": echo(value, depth)}
    if kind == "too_long":
        entry["ctx"] = {
            "field_type": "List",
            "max_length": MAX_IDS_PER_REQUEST,
            "actual_length": len(value),
        }
    return entry


def echo(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Shorten a decoded JSON value for a response.

    The result is small and valid JSON, without NaN, long numbers or deep nesting.
    """
    if isinstance(value, str):
        return value if len(value) <= MAX_CHARACTERS else value[:MAX_CHARACTERS] + "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return echo(str(value))
    if isinstance(value, list | dict) and depth == 0:
        return "…"
    if isinstance(value, list):
        shown = [echo(item, depth - 1) for item in value[:MAX_ITEMS]]
        return shown if len(value) <= MAX_ITEMS else [*shown, "…"]
    if isinstance(value, dict):
        names = list(value)[:MAX_ITEMS]
        return {echo(name): echo(value[name], depth - 1) for name in names}
    return value
