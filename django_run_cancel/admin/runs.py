"""The admin of the default run model."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_run_cancel.admin.base import (
    AnyModelAdmin,
    FastListMixin,
    ReadOnlyMixin,
    searched,
    starts_with,
)
from django_run_cancel.admin.cancelling import CancelRunsAdminMixin
from django_run_cancel.admin.filters import (
    StatusFilter,
    StopStateFilter,
    TenantFilter,
    TypeFilter,
)
from django_run_cancel.models import CancellationItem, Run


@admin.register(Run)  # does nothing where the run model is swapped
class RunAdmin(CancelRunsAdminMixin, FastListMixin, ReadOnlyMixin, AnyModelAdmin):
    """Runs, to look at and to cancel."""

    list_display = ("run_id", "title", "state_words", "run_type", "tenant", "created_at", "record")
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
    sortable_by = ("created_at",)
    search_fields = ("run_id",)
    search_help_text = _("The beginning of a run id.")
    fieldsets = (
        (None, {"fields": ("run_id", "run_type", "title", "tenant", "parent_link", "metadata")}),
        (
            _("Life"),
            {
                "fields": (
                    "state_words",
                    "created_at",
                    "queued_at",
                    "started_at",
                    "heartbeat_at",
                    "finished_at",
                    "failure_reason",
                )
            },
        ),
        (_("Cancellation"), {"fields": ("record", "delivery", "stopped_at")}),
        (_("Executor"), {"fields": ("backend", "external_id", "dispatched_at")}),
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find runs by the beginning of their id."""
        term = search_term.strip()
        return searched(queryset, starts_with("run_id", term), term)

    @admin.display(description=_("state"), ordering="status")
    def state_words(self, run: Any) -> Any:
        """Return the state in words that tell a stopped run from one that is stopping."""
        return run.state_words

    @admin.display(description=_("cancelled by"))
    def record(self, run: Any) -> Any:
        """Return who cancelled the run."""
        return run.cancellation.requested_by if run.cancellation else "-"

    @admin.display(description=_("executor told"))
    def delivery(self, run: Any) -> Any:
        """Return whether the executor has been told, and if not why."""
        item = CancellationItem.objects.filter(
            cancellation=run.cancellation_id, run_id=run.run_id
        ).last()
        if item is None:
            return "-"
        return f"{item.get_delivery_display()} {item.last_error}"

    @admin.display(description=_("parent"))
    def parent_link(self, run: Any) -> Any:
        """Return the run above, with a link to it."""
        return self.link_to_run(run.parent.run_id) if run.parent else "-"
