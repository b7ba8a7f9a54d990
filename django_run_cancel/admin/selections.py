"""All rows of a list as it is filtered, as the selection of a bulk cancellation.

The page that asks carries the query string of the list, signed, and no ids: there may be millions.
Whatever of the query string has no effect on the list is refused, as the list then shows more than
its address says.
"""

from __future__ import annotations

from copy import copy
from datetime import datetime
from typing import Any, NamedTuple

from django.contrib.admin import ModelAdmin
from django.contrib.admin.options import (
    IS_FACETS_VAR,
    IS_POPUP_VAR,
    TO_FIELD_VAR,
    IncorrectLookupParameters,
)
from django.contrib.admin.views import main
from django.core import signing
from django.core.exceptions import SuspiciousOperation, ValidationError
from django.db.models import Max, QuerySet
from django.http import HttpRequest, QueryDict
from django.utils.dateparse import parse_datetime

from django_run_cancel.admin.search import SEARCHED_NEWEST

SALT = "django_run_cancel.admin.selections"

NO_FILTERS = (
    *(main.PAGE_VAR, main.ALL_VAR, main.ERROR_FLAG),
    *(IS_FACETS_VAR, IS_POPUP_VAR, TO_FIELD_VAR),
)
"""Parameters of a list that neither choose rows nor order them."""

ALL_ACTIVE: tuple[dict[str, list[str]], ...] = ({}, {"status": ["active"]})
"""Filters of the list of runs that every active run passes."""


class NoSelection(Exception):
    """A query string does not say which rows are meant."""


class PartialSearch(NoSelection):
    """The search has looked at the newest rows only, which are others at another time."""


class Selection(NamedTuple):
    """The rows of a list.

    Attributes:
        query: The query string of the list, without its page.
        filters: What it says, as JSON values.
        rows: The rows.
        is_everything: Whether no active run is filtered out.
        until: When the newest run was created that was there when the selection was shown.
    """

    query: str
    filters: dict[str, Any]
    rows: QuerySet[Any]
    is_everything: bool
    until: datetime | None

    def signed(self, request: HttpRequest) -> str:
        """Return the selection as text that only this user can send back."""
        return signing.dumps(
            [self.query, self.until and self.until.isoformat()], salt=_salt(request)
        )


def select(
    page: ModelAdmin[Any], request: HttpRequest, query: str, until: datetime | None = None
) -> Selection:
    """Return the rows that a list shows on all of its pages.

    Args:
        page: Whose list it is: its filters, search and ``get_queryset()`` choose.
        request: Whose permissions count.
        query: The query string of the list.
        until: Without runs created later; by default without those created after the newest.

    Raises:
        NoSelection: The query string is invalid, or a part of it has no effect on the list.
        PartialSearch: The search was bounded.
    """
    parameters = QueryDict(query, mutable=True)
    for name in NO_FILTERS:
        parameters.pop(name, None)
    # PostgreSQL cannot even look for it.
    if any("\0" in value for _, values in parameters.lists() for value in values):
        raise NoSelection
    listing = copy(request)
    listing.method = "GET"
    listing.GET = parameters  # type: ignore[assignment]  # nobody changes it
    try:
        changelist = page.get_changelist_instance(listing)
        _check_effect(changelist, listing)
        rows = changelist.queryset
        if until is None:
            runs = rows.model._base_manager.using(rows.db)
            until = runs.aggregate(newest=Max("created_at"))["newest"]
        if until is not None:
            rows = rows.filter(created_at__lte=until)
    except (
        *(IncorrectLookupParameters, SuspiciousOperation, ValidationError),
        *(ValueError, OverflowError),
    ) as error:
        raise NoSelection from error
    if getattr(listing, SEARCHED_NEWEST, None):
        raise PartialSearch
    text = changelist.query.strip()
    chosen = changelist.get_filters_params()
    filters = {name: _json(values) for name, values in sorted(chosen.items())}
    if text:
        filters[main.SEARCH_VAR] = text
    is_everything = not text and chosen in ALL_ACTIVE
    return Selection(parameters.urlencode(), filters, rows, is_everything, until)


def select_again(page: ModelAdmin[Any], request: HttpRequest, signed: str) -> Selection:
    """Return the selection that was shown.

    Args:
        page: As for ``select``.
        request: As for ``select``.
        signed: What ``Selection.signed`` has returned.

    Raises:
        NoSelection: It was changed, belongs to another user, or selects nothing any more.
    """
    try:
        query, until = signing.loads(signed, salt=_salt(request))
    except signing.BadSignature as error:
        raise NoSelection from error
    return select(page, request, query, parse_datetime(until) if until else None)


def _salt(request: HttpRequest) -> str:
    return f"{SALT}:{request.user.pk}"


def _json(values: list[str]) -> Any:
    return values[0] if len(values) == 1 else values


def _check_effect(changelist: Any, request: HttpRequest) -> None:
    """Refuse parameters that the list has ignored: it has shown more than they say."""
    # Those that are left are lookups, which have an effect or are an error.
    specs, _, lookups, *_ = changelist.get_filters(request)
    used = {name for spec in specs for name in spec.expected_parameters()}
    ignored = set(changelist.get_filters_params()).difference(used, lookups)
    if changelist.date_hierarchy:
        parts = ("year", "month", "day")
        ignored.difference_update(f"{changelist.date_hierarchy}__{part}" for part in parts)
    everything = changelist.root_queryset
    for spec in specs:
        if spec.used_parameters and spec.queryset(request, everything) in (None, everything):
            ignored.update(spec.used_parameters)
    asked = request.GET.get(main.SEARCH_VAR, "").strip()
    if asked and _ignores_search(changelist, request):
        ignored.add(main.SEARCH_VAR)
    if ignored:
        raise NoSelection(", ".join(sorted(ignored)))


def _ignores_search(changelist: Any, request: HttpRequest) -> bool:
    everything = changelist.root_queryset
    page = changelist.model_admin
    found, _ = page.get_search_results(request, everything, changelist.query)
    return found is everything
