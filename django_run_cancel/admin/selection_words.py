"""The filters of a bulk cancellation in words: names of fields, and labels of their values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any

from django.contrib.admin.views.main import SEARCH_VAR
from django.core.exceptions import FieldDoesNotExist
from django.db.models import DateField, Field
from django.utils import formats, timezone
from django.utils.dateparse import parse_datetime
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from django_run_cancel.models import get_run_model
from django_run_cancel.states import (
    RunType,
    StopState,
    words_of_status,
    words_of_stop,
)

SIGNS = {"gt": ">", "gte": "≥", "lt": "<", "lte": "≤"}
"""Signs of the lookups that filters of the admin send."""

LOOKUPS = {
    "type": "run_type",
    "created_after": "created_at__gte",
    "created_before": "created_at__lt",
    "started_after": "started_at__gte",
    "started_before": "started_at__lt",
}
"""Lookups by filter of the API and the command, where the names are not those of fields."""


def describe(filters: Mapping[str, Any]) -> str:
    """Return filters in words, the search last; blank without any."""
    names = sorted(filters, key=lambda name: (name == SEARCH_VAR, name))
    return "; ".join(part for name in names for part in _parts(name, filters[name]))


def _parts(name: str, value: Any) -> Iterator[str]:
    if name == SEARCH_VAR:
        label = capfirst(_("search"))  # in no f-string: Babel does not look there
        yield f"{label}: {value}"
    elif name == "ancestor":
        label = capfirst(_("below the run"))
        yield f"{label}: {value}"
    elif name == "metadata" and isinstance(value, dict):
        label = capfirst(str(_field("metadata").verbose_name))  # type: ignore[union-attr]  # it exists
        for key, wanted in value.items():
            text = wanted if isinstance(wanted, str) else json.dumps(wanted)
            yield f"{label} {key}: {text}"
    else:
        yield _comparison(LOOKUPS.get(name, name), value)


def _comparison(lookup: str, value: Any) -> str:
    """Return a lookup and its value, such as "Status: queued" or "Created at ≥ 02/01/2026"."""
    name, _separator, comparison = lookup.partition("__")
    field = _field(name)
    # A filter of the project may have any name.
    label = capfirst(str(field.verbose_name) if field else name.replace("_", " "))
    values = value if isinstance(value, list) else [value]
    if comparison == "isnull":
        is_empty = str(value).lower() in {"true", "1"}
        none = _("(none)")
        return f"{label}: {none}" if is_empty else f"{label} ≠ {none}"
    if comparison not in {"", "exact", "in", *SIGNS}:
        label = f"{label} ({comparison.replace('_', ' ')})"
        field = None
    text = ", ".join(str(_words(name, field, each)) for each in values)
    sign = SIGNS.get(comparison)
    return f"{label} {sign} {text}" if sign else f"{label}: {text}"


def _field(name: str) -> Field[Any, Any] | None:
    try:
        field: Any = get_run_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return field if hasattr(field, "verbose_name") else None  # not the reverse of a relation


def _words(name: str, field: Field[Any, Any] | None, value: Any) -> Any:
    """Return a value as people call it."""
    if value == "":
        return _("(none)")
    if name == "status":
        if value == "active":
            return pgettext("runs", "active")
        return words_of_stop(value) if value == StopState.STOPPING else words_of_status(value)
    if name == "stop_state":
        return words_of_stop(value)
    if name == "run_type":
        return dict(RunType.choices).get(value, value)
    if isinstance(field, DateField):
        return _moment(str(value))
    choices = {str(key): label for key, label in getattr(field, "flatchoices", ())}
    return choices.get(str(value), value)


def _moment(text: str) -> str:
    """Return a time in the format of the language; as it is if it is no time."""
    try:
        moment = parse_datetime(text)
        if moment is None:
            return formats.date_format(date.fromisoformat(text), "SHORT_DATE_FORMAT")
        return _local(moment)
    except (ValueError, OverflowError):
        return text


def _local(moment: datetime) -> str:
    if timezone.is_aware(moment):
        moment = timezone.localtime(moment)
    return f"{formats.date_format(moment, 'SHORT_DATE_FORMAT')} {moment:%H:%M:%S}"
