"""Filters of the list of runs. Each uses an index, also for what it offers to choose from."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import ModelAdmin, SimpleListFilter
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext

from django_run_cancel import sql
from django_run_cancel.ids import is_storable
from django_run_cancel.states import ACTIVE, STATE_WORDS, RunStatus

MAX_CHOICES = 100
"""Values that a filter offers. Any other can be written into the address of the page."""

MAX_VALUE_LENGTH = 64


class StatusFilter(SimpleListFilter):
    """By status; active ones together, as they are those that can be cancelled."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [("active", pgettext("runs", "active")), *RunStatus.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the runs of the status that was chosen."""
        value = self.value()
        if value == "active":
            return queryset.filter(status__in=ACTIVE)
        return _equal(queryset, "status", value)


class StopStateFilter(SimpleListFilter):
    """By how the work of a cancelled run ended, or has yet to."""

    title = _("how the work ended")
    parameter_name = "stop_state"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [(state.value, words) for state, words in STATE_WORDS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the runs that ended so."""
        return _equal(queryset, "stop_state", self.value())


class _ExistingValuesFilter(SimpleListFilter):
    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Return the first values that there are among the runs that the user may see."""
        runs = model_admin.get_queryset(request)
        values = sql.read_distinct(runs, self.parameter_name or "", MAX_CHOICES)
        return [(value, value or _("(none)")) for value in values]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the runs with the value that was chosen."""
        return _equal(queryset, self.parameter_name or "", self.value())


class TypeFilter(_ExistingValuesFilter):
    """By type."""

    title = _("type")
    parameter_name = "run_type"


class TenantFilter(_ExistingValuesFilter):
    """By tenant."""

    title = _("tenant")
    parameter_name = "tenant"


def _equal(queryset: QuerySet[Any], field: str, value: str | None) -> QuerySet[Any]:
    if value is None:
        return queryset
    if not is_storable(value, MAX_VALUE_LENGTH):
        return queryset.none()
    return queryset.filter(**{field: value})
