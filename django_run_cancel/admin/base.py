"""Base classes of the admin pages: read-only, and lists that never read a whole table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib.admin import AdminSite, ModelAdmin, ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _

from django_run_cancel.admin.columns import shown

if TYPE_CHECKING:
    AnyModelAdmin = ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:
    AnyModelAdmin = ModelAdmin
    _Paginator = Paginator

MAX_COUNTED = 10_000
"""Rows that a list counts, and that its pages reach; filters and the search reach the others."""

COMPARISONS = ("exact", "in", "isnull", "gt", "gte", "lt", "lte")
"""Lookups that the filters of Django's admin send."""

STYLES: dict[str, Sequence[str]] = {
    "all": ["django_run_cancel/admin.css", "django_run_cancel/grappelli.css"]
}
"""The style sheets of all pages, as the CSS of Django's ``Media``."""

HIGHEST_CHARACTER = "\U0010ffff"


class CappedPaginator(_Paginator):
    """Counts no further than ``MAX_COUNTED``: of a million rows that alone would take long."""

    is_capped = False

    @cached_property
    def count(self) -> int:
        """Return how many rows there are, or ``MAX_COUNTED`` when there are more."""
        # Django counts the rows of a slice in a subquery with its LIMIT.
        found: int = self.object_list.order_by()[: MAX_COUNTED + 1].count()  # type: ignore[attr-defined]
        self.is_capped = found > MAX_COUNTED
        return min(found, MAX_COUNTED)


class GroupedInt(int):
    """A number that Django's templates and messages show as people read it: "10,000"."""

    def __str__(self) -> str:
        return shown(int(self))


class CappedChangeList(ChangeList):
    """Says so when it does not show everything."""

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        values = (value for _, values in request.GET.lists() for value in values)
        # A text that PostgreSQL cannot even look for.
        if any("\0" in value for value in values):
            raise IncorrectLookupParameters
        try:
            super().__init__(request, *args, **kwargs)
        except OverflowError as error:  # a time that in UTC has no year from 1 to 9999
            raise IncorrectLookupParameters from error
        if getattr(self.paginator, "is_capped", False):
            self.title = _("The first %(count)s of more; filter or search to see others") % {
                "count": shown(MAX_COUNTED)
            }

    def get_results(self, request: HttpRequest) -> None:
        """Read a page of the list."""
        super().get_results(request)
        self.result_count = GroupedInt(self.result_count)

    def get_ordering_field(self, field_name: Any) -> Any:
        """Return what to order by, if rows may be ordered by it, also when a link says so."""
        allowed = field_name in (self.sortable_by or ())
        return super().get_ordering_field(field_name) if allowed else None


class FewLookupsMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Lists that are filtered by what their filters and the links to them send, and nothing else.

    Django lets any lookup of a field be written into the address. Some read the whole table, some
    find out secrets a character at a time, and a regular expression can fail in the database, or
    keep it busy.
    """

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Tell whether the address may have this lookup."""
        names = {_parameter_of(each) for each in self.get_list_filter(request)}
        # Links lead to the rows that refer to another.
        names.update(field.name for field in self.opts.fields if field.is_relation)
        name, _, comparison = lookup.rpartition("__")
        is_chosen = lookup in names or (name in names and comparison in COMPARISONS)
        is_date = bool(self.date_hierarchy) and name == self.date_hierarchy
        # Names that are no fields have no effect.
        fields = {"pk", *(field.name for field in self.opts.fields)}
        is_other = lookup.partition("__")[0] not in fields
        allowed: bool = super().lookup_allowed(lookup, value, request)
        return allowed and (is_chosen or is_date or is_other)


def _parameter_of(list_filter: Any) -> str:
    """Return the field that a filter of Django's is about, or the parameter of another filter."""
    name = list_filter[0] if isinstance(list_filter, list | tuple) else list_filter
    return name if isinstance(name, str) else name.parameter_name


class FastListMixin(FewLookupsMixin):
    """Lists of a constant number of statements, none of which reads the whole table."""

    paginator: Any = CappedPaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_per_page = 100

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that says how many rows it shows."""
        return CappedChangeList


class ReadOnlyMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Rows that nobody adds, changes or deletes by hand."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        """Allow it to nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow it to nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow it to nobody."""
        return False


class AddressMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Names and addresses of the pages of a ``ModelAdmin``."""

    def _name(self, page: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{page}"

    def _url(self, page: str, *args: Any) -> str:
        return reverse(f"admin:{self._name(page)}", args=args, current_app=self.admin_site.name)


def starts_with(field: str, text: str) -> Q:
    """Return the condition that a byte-wise compared column starts with a text.

    A range uses the index on every database; LIKE does not on SQLite and MariaDB.
    """
    return Q(**{f"{field}__gte": text, f"{field}__lt": text + HIGHEST_CHARACTER})


def link(site: AdminSite, label: Any, name: str, *args: Any, query: str = "") -> Any:
    """Return a link to a page of an admin site, or only its label when there is no such page."""
    try:
        url = reverse(f"admin:{name}", args=args, current_app=site.name)
    except NoReverseMatch:  # the host has not registered it
        return label
    return format_html('<a class="run-cancel-link" href="{}{}">{}</a>', url, query, label)


def searched(queryset: QuerySet[Any], condition: Q, term: str) -> tuple[QuerySet[Any], bool]:
    """Return what ``get_search_results`` has to: the rows, and that none comes twice."""
    return (queryset.filter(condition) if term else queryset), False
