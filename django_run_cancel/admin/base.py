"""Base classes of the admin pages: read-only, and lists that never read a whole table."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib.admin import AdminSite, ModelAdmin, ShowFacets
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _

if TYPE_CHECKING:
    AnyModelAdmin = ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:
    AnyModelAdmin = ModelAdmin
    _Paginator = Paginator

MAX_COUNTED = 10_000
"""Rows that a list counts, and that its pages reach; filters and the search reach the others."""

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


class CappedChangeList(ChangeList):
    """Says so when it does not show everything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self.paginator, "is_capped", False):
            self.title = _("The first %(count)d of more; filter or search to see others") % {
                "count": MAX_COUNTED
            }

    def get_ordering_field(self, field_name: Any) -> Any:
        """Return what to order by, if rows may be ordered by it, also when a link says so."""
        allowed = field_name in (self.sortable_by or ())
        return super().get_ordering_field(field_name) if allowed else None


class FastListMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]
    """Lists of a constant number of statements, none of which reads the whole table."""

    paginator: Any = CappedPaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_per_page = 100

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that says how many rows it shows."""
        return CappedChangeList


class ReadOnlyMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]
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


class AddressMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]
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
    return format_html('<a href="{}{}">{}</a>', url, query, label)


def searched(queryset: QuerySet[Any], condition: Q, term: str) -> tuple[QuerySet[Any], bool]:
    """Return what ``get_search_results`` has to: the rows, and that none comes twice."""
    return (queryset.filter(condition) if term else queryset), False
