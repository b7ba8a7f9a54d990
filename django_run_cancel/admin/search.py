"""The search in lists: in all rows where an index serves it, otherwise in the newest rows."""

from __future__ import annotations

import re
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, NamedTuple

from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _

from django_run_cancel.admin.base import MAX_COUNTED, AnyModelAdmin, starts_with
from django_run_cancel.admin.columns import shown
from django_run_cancel.db.search_indexes import Kind, SearchIndex

MAX_WORDS = 10
"""Parts of a search that may be anywhere in the text. The last is all that follows the others."""

ROWS_WORTH_AN_INDEX = 1_000
"""As many rows PostgreSQL finds through an index, however rare it takes them to be."""

SEARCHED_NEWEST = "run_cancel_searched_newest"
"""Attribute of a request: the fields that were searched in the newest rows only."""

TRIGRAM = re.compile(r"[^\W_]{3}")
"""What a word needs for an index of trigrams to help."""


class Searched(NamedTuple):
    """A field that is searched.

    Attributes:
        name: The field.
        kind: Whether words are looked for in it, or the beginning.
    """

    name: str
    kind: Kind

    def condition(self, term: str) -> Q:
        """Return the condition that a row has what is looked for."""
        if self.kind == "prefix":
            return starts_with(self.name, term)
        words = term.split(maxsplit=MAX_WORDS - 1)
        return Q(*(Q(**{f"{self.name}__icontains": word}) for word in words))

    def has_index(self, rows: QuerySet[Any], term: str) -> bool:
        """Tell whether an index finds it among any number of rows."""
        if self.kind == "words" and not TRIGRAM.search(term):
            return False
        return SearchIndex.of(rows.model, self.name, self.kind).exists(rows.db)


class SearchMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Finds rows by fields of which some may have no index, and says when it has left out old rows.

    Attributes:
        searched_always: Fields with an index in every database: that of the public id.
        searched: Fields that may have one.
        newest_by: When a row was created.
    """

    searched_always: Searched
    searched: tuple[Searched, ...]
    newest_by: str

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Return the rows that match in one of the fields."""
        term = search_term.strip()
        if not term:
            return queryset, False
        conditions = [self.searched_always.condition(term), *self.more_conditions(term)]
        served = {field: field.has_index(queryset, term) for field in self.searched}
        newest = None if all(served.values()) else self._newest(queryset)
        for field, is_served in served.items():
            condition = field.condition(term)
            if newest is not None and not is_served:
                condition &= newest
            conditions.append(condition)
        if newest is not None:
            names = [field.name for field, is_served in served.items() if not is_served]
            setattr(request, SEARCHED_NEWEST, names)
        newest_first = queryset.order_by(f"-{self.newest_by}")
        # Of several conditions, databases often use no index: there is mostly only one that helps.
        helpful = [each for each in conditions if _has_any(newest_first.filter(each))]
        if not helpful:
            return queryset.none(), False
        return queryset.filter(reduce(or_, helpful)), False

    def more_conditions(self, term: str) -> list[Q]:
        """Return other conditions by which rows are found, each with an index."""
        return []

    def _newest(self, rows: QuerySet[Any]) -> Q | None:
        """Return which rows are the newest, or None if there are no more than are searched."""
        newest = rows.order_by(f"-{self.newest_by}", "-pk").values_list(self.newest_by, "pk")
        last = list(newest[MAX_COUNTED - 1 : MAX_COUNTED + 1])
        if len(last) < 2:
            return None
        moment, pk = last[0]
        by = self.newest_by
        return Q(**{f"{by}__gte": moment}) & (Q(**{f"{by}__gt": moment}) | Q(pk__gte=pk))

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the list, and say when only a part of it was searched."""
        page = super().changelist_view(request, extra_context)
        names = getattr(request, SEARCHED_NEWEST, [])
        if names and request.method == "GET":
            text = _(
                "Only in the newest %(count)s rows of this list were these searched: %(fields)s."
            )
            fields = ", ".join(str(self.opts.get_field(name).verbose_name) for name in names)
            about = {"count": shown(MAX_COUNTED), "fields": fields}
            self.message_user(request, text % about, messages.WARNING)
        return page


def _has_any(rows: QuerySet[Any]) -> bool:
    """Tell whether there is a row.

    PostgreSQL takes no long text to be rarer than one row in 10,000. Asked for a single row, it
    reads the table until it meets one, which of a text that no row has is all of the table.
    """
    return bool(rows[:ROWS_WORTH_AN_INDEX].count())
