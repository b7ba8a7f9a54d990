"""The admin of the default run model."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from django_run_cancel.admin.base import AnyModelAdmin, FastListMixin, ReadOnlyMixin
from django_run_cancel.admin.columns import age, heading, short_id, state_and_time
from django_run_cancel.admin.filters import StatusFilter, StopStateFilter, TenantFilter, TypeFilter
from django_run_cancel.admin.mixins import CancelRunsAdminMixin
from django_run_cancel.admin.search import Searched, SearchMixin
from django_run_cancel.models import Run


@admin.register(Run)  # does nothing where the run model is swapped
class RunAdmin(CancelRunsAdminMixin, SearchMixin, FastListMixin, ReadOnlyMixin, AnyModelAdmin):
    """Runs, to look at and to cancel."""

    list_display = ("title_or_id", "state_words", "id_and_kind", "age", "record")
    list_filter = (
        StatusFilter,
        StopStateFilter,
        TypeFilter,
        TenantFilter,
        "created_at",
    )
    list_select_related = ("cancellation",)
    ordering = ("-created_at",)
    # Each other order would sort the whole table.
    sortable_by = ("age",)
    search_fields = ("run_id", "external_id", "title")
    search_help_text = _(
        "The beginning of a run's id or external id, as it is written; or words of its title."
    )
    searched_always = Searched("run_id", "prefix")
    searched = (Searched("external_id", "prefix"), Searched("title", "words"))
    newest_by = "created_at"
    # What changes is in the summary above, which is kept up to date.
    fieldsets = (
        (None, {"fields": ("run_id", "run_type", "title", "tenant", "metadata")}),
        (_("Executor"), {"fields": ("backend", "external_id")}),
    )

    @admin.display(description=_("title"))
    def title_or_id(self, run: Any) -> Any:
        """Return what to call the run."""
        return heading(run)

    @admin.display(description=_("run"))
    def id_and_kind(self, run: Any) -> Any:
        """Return the id, shortened, and below it the type and the tenant."""
        kind = ", ".join(filter(None, (run.run_type, run.tenant)))
        return format_html("{}<br>{}", short_id(run.run_id), kind)

    @admin.display(description=_("state"))
    def state_words(self, run: Any) -> Any:
        """Return the state in words that tell a stopped run from one that is stopping."""
        return state_and_time(run)

    @admin.display(description=_("age"), ordering="created_at")
    def age(self, run: Any) -> Any:
        """Return how long ago the run was created."""
        return age(run.created_at)

    @admin.display(description=_("cancelled by"))
    def record(self, run: Any) -> Any:
        """Return who cancelled the run."""
        return run.cancellation.requested_by if run.cancellation else "-"
