"""Filters of the list of runs. Each uses an index, also for what it offers to choose from."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import ModelAdmin, SimpleListFilter
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext

from django_run_cancel.db import trees
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import ACTIVE, STATE_WORDS, RunStatus, StopState

MAX_CHOICES = 100
"""Values that a filter offers. Any other can be written into the address of the page."""

NEWEST_RUNS = 1_000
"""Runs whose types are offered."""

MAX_VALUE_LENGTH = 64


class StatusFilter(SimpleListFilter):
    """By status. First what operators look for: runs that can be cancelled, or have not stopped."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Return the choices."""
        stopping = StopState.STOPPING
        looked_for = [("active", pgettext("runs", "active")), (stopping, STATE_WORDS[stopping])]
        return [*looked_for, *RunStatus.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the runs of the status that was chosen."""
        value = self.value()
        if value == "active":
            return queryset.filter(status__in=ACTIVE)
        if value == StopState.STOPPING:
            return queryset.filter(stop_state=StopState.STOPPING)
        if value == RunStatus.CANCELLED:
            queryset = queryset.exclude(stop_state="")  # for the sake of the index of stop_state
        return _equal(queryset, "status", value)


class StopStateFilter(SimpleListFilter):
    """By how the code of a cancelled run ended, or has yet to."""

    title = _("how its code ended")
    parameter_name = "stop_state"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Return the choices."""
        return [(state.value, words) for state, words in STATE_WORDS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the runs that ended so."""
        return _equal(queryset, "stop_state", self.value())


class TypeFilter(SimpleListFilter):
    """By type; no index has it, since a change of the status would have to write to that too."""

    title = _("type")
    parameter_name = "run_type"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Return the types of the newest runs that the user may see."""
        runs = model_admin.get_queryset(request).order_by("-created_at")
        return _choices(sorted(set(runs.values_list("run_type", flat=True)[:NEWEST_RUNS])))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the runs of the type that was chosen."""
        return _equal(queryset, "run_type", self.value())


class TenantFilter(SimpleListFilter):
    """By tenant."""

    title = _("tenant")
    parameter_name = "tenant"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, Any]]:
        """Return the first tenants that there are among the runs that the user may see."""
        runs = model_admin.get_queryset(request)
        return _choices(trees.read_distinct(runs, "tenant", MAX_CHOICES))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the runs of the tenant that was chosen."""
        return _equal(queryset, "tenant", self.value())


def _choices(values: list[str]) -> list[tuple[str, Any]]:
    return [(value, value or _("(none)")) for value in values[:MAX_CHOICES]]


def _equal(queryset: QuerySet[Any], field: str, value: str | None) -> QuerySet[Any]:
    if value is None:
        return queryset
    if not is_storable(value, MAX_VALUE_LENGTH):
        return queryset.none()
    return queryset.filter(**{field: value})
