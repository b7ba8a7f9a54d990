"""Cancellations in the admin: who cancelled which runs, when and why, and what came of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_run_cancel.admin.base import (
    MAX_COUNTED,
    AnyModelAdmin,
    FastListMixin,
    ReadOnlyMixin,
    link,
    searched,
    starts_with,
)
from django_run_cancel.admin.cancellation_page import CancellationPageMixin
from django_run_cancel.admin.mixins import CancelRunsAdminMixin
from django_run_cancel.admin.search import Searched, SearchMixin
from django_run_cancel.admin.worker import WorkerWarningMixin
from django_run_cancel.cancellation.evidence import with_evidence
from django_run_cancel.delivery.outbox import retry_deliveries
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import Delivery, words_of_status, words_of_stop


class RetryMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]
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
        text = ngettext("%d delivery is due again.", "%d deliveries are due again.", count)
        self.message_user(request, text % count, messages.SUCCESS)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the list, and first of all what needs a hand."""
        failed = CancellationItem.objects.filter(delivery=Delivery.FAILED)[:MAX_COUNTED].count()
        if failed and request.method == "GET":
            text = ngettext(
                "%d executor could not be told that its run is cancelled.",
                "%d executors could not be told that their runs are cancelled.",
                failed,
            )
            name, query = "django_run_cancel_cancellationitem_changelist", "?delivery__exact=failed"
            see = link(self.admin_site, _("See which"), name, query=query)
            self.message_user(request, format_html("{} {}", text % failed, see), messages.ERROR)
        return super().changelist_view(request, extra_context)


class ItemColumns(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]
    """Columns of the items that are no fields."""

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

    @admin.display(description=gettext_lazy("the work"))
    def work(self, item: Any) -> Any:
        """Return how the work of the run has ended, in words."""
        return words_of_stop(item.stop_state) or "-"


@admin.register(Cancellation)
class CancellationAdmin(
    RetryMixin, CancellationPageMixin, SearchMixin, FastListMixin, ReadOnlyMixin, AnyModelAdmin
):
    """Requests to cancel runs."""

    list_display = (
        "cancellation_id",
        "requested_at",
        "requested_by",
        "source",
        "short_reason",
        "total_count",
        "cancelled_count",
        "failed_count",
        "cascaded_count",
    )
    actions = ("retry",)
    list_filter = ("source", "requested_at")
    ordering = ("-requested_at",)
    sortable_by = ("requested_at",)
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

    @admin.display(description=gettext_lazy("reason"))
    def short_reason(self, record: Cancellation) -> str:
        """Return the beginning of the reason."""
        return Truncator(record.reason).chars(60)


@admin.register(CancellationItem)
class CancellationItemAdmin(
    ItemColumns, RetryMixin, WorkerWarningMixin, FastListMixin, ReadOnlyMixin, AnyModelAdmin
):
    """The runs of all cancellations: what happened to each, and whether its executor was told."""

    list_display = (
        "run_id",
        "outcome",
        "via",
        "status_before",
        "delivery",
        "attempts",
        "record",
    )
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

    @admin.display(description=gettext_lazy("cancellation"))
    def record(self, item: CancellationItem) -> Any:
        """Return who asked, with a link to the record."""
        record = item.cancellation
        name = "django_run_cancel_cancellation_change"
        return link(self.admin_site, f"{record} ({record.requested_by})", name, record.pk)
