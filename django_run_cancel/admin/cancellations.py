"""Cancellations in the admin: who cancelled which runs, when and why, and what came of each."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_run_cancel.admin.announcements import FailedDeliveriesMixin
from django_run_cancel.admin.base import (
    STYLES,
    AnyModelAdmin,
    FastListMixin,
    ReadOnlyMixin,
    searched,
    starts_with,
)
from django_run_cancel.admin.cancellation_columns import CancellationColumns, ItemColumns
from django_run_cancel.admin.cancellation_page import CancellationPageMixin
from django_run_cancel.admin.columns import shown
from django_run_cancel.admin.mixins import CancelRunsAdminMixin
from django_run_cancel.admin.search import Searched, SearchMixin
from django_run_cancel.admin.worker import WorkerWarningMixin
from django_run_cancel.cancellation.evidence import with_evidence
from django_run_cancel.delivery.outbox import retry_deliveries
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import words_of_status


class RetryMixin(FailedDeliveriesMixin):
    """Says that executors could not be told, and lets who may cancel have it tried again."""

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may cancel runs."""
        return request.user.has_perm(f"{get_run_model()._meta.app_label}.cancel_run")

    def items_of(self, queryset: QuerySet[Any]) -> QuerySet[CancellationItem]:
        """Return the items behind selected rows."""
        return queryset

    @admin.action(permissions=["cancel"], description=gettext_lazy("Try failed deliveries again"))
    def retry(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Make due again what has failed for good."""
        count = retry_deliveries(self.items_of(queryset))
        if not count:
            self.message_user(request, _("No delivery has failed."), messages.WARNING)
            return
        text = ngettext(
            "%(count)s delivery is due again.", "%(count)s deliveries are due again.", count
        )
        self.message_user(request, text % {"count": shown(count)}, messages.SUCCESS)


@admin.register(Cancellation)
class CancellationAdmin(
    RetryMixin,
    CancellationPageMixin,
    CancellationColumns,
    SearchMixin,
    FastListMixin,
    ReadOnlyMixin,
    AnyModelAdmin,
):
    """Requests to cancel runs."""

    list_display = ("who_and_why", "state_now", "counts", "id_and_source", "age")
    actions = ("retry",)
    list_filter = ("source", "requested_at")
    ordering = ("-requested_at",)
    # Each other order would sort the whole table.
    sortable_by = ("age",)
    search_fields = ("cancellation_id", "requested_by", "reason")
    search_help_text = gettext_lazy(
        "The beginning of a cancellation's id, or a whole run id, as it is written; or words of "
        "the reason or of who asked."
    )
    searched_always = Searched("cancellation_id", "prefix")
    searched = (Searched("requested_by", "words"), Searched("reason", "words"))
    newest_by = "requested_at"
    # What changes is in the summary above, which is kept up to date.
    fieldsets = (
        (
            gettext_lazy("Who, and from where"),
            {
                "fields": (
                    *("cancellation_id", "requested_by", "user_id", "source"),
                    *("ip_address", "request_id", "tenant"),
                )
            },
        ),
    )

    def more_conditions(self, term: str) -> list[Q]:
        """Find cancellations by a run too."""
        of_run = CancellationItem.objects.filter(run_id=term).values("cancellation")
        return [Q(pk__in=of_run)]

    def items_of(self, queryset: QuerySet[Any]) -> QuerySet[CancellationItem]:
        """Return the items of selected cancellations."""
        return CancellationItem.objects.filter(cancellation__in=queryset.values("pk"))


@admin.register(CancellationItem)
class CancellationItemAdmin(
    ItemColumns, RetryMixin, WorkerWarningMixin, FastListMixin, ReadOnlyMixin, AnyModelAdmin
):
    """The runs of all cancellations: what happened to each, and whether its executor was told."""

    class Media:
        css: ClassVar[Any] = STYLES

    list_display = ("title_and_id", "result", "work", "told", "record")
    actions = ("retry",)
    list_filter = ("delivery", "handling")
    list_select_related = ("cancellation",)
    ordering = ("-pk",)
    sortable_by = ()
    search_fields = ("run_id",)
    search_help_text = gettext_lazy("The beginning of a run id.")
    fields = (
        "run",
        "record",
        "outcome",
        "via",
        "status_before",
        "work",
        "backend",
        "external_id",
        "delivery",
        "attempts",
        "next_attempt_at",
        "last_error",
        "force",
        "handling",
        "handling_attempts",
        "next_handling_at",
        "handling_error",
    )
    readonly_fields = fields

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find items by the beginning of the run's id."""
        term = search_term.strip()
        return searched(queryset, starts_with("run_id", term), term)

    def get_object(self, request: HttpRequest, *args: Any) -> Any:
        """Return an item, with what is known of its run."""
        item = super().get_object(request, *args)
        return item and with_evidence([item])[0]

    @admin.display(description=gettext_lazy("run"))
    def run(self, item: CancellationItem) -> Any:
        """Return the run's id, with a link to its page if there is one."""
        page = self.admin_site._registry.get(get_run_model())
        if item.previous_status and isinstance(page, CancelRunsAdminMixin):
            return page.link_to_run(item.run_id)
        return item.run_id

    @admin.display(description=gettext_lazy("previous status"))
    def status_before(self, item: CancellationItem) -> Any:
        """Return the status that the run had, as people call it."""
        return words_of_status(item.previous_status) or "-"
