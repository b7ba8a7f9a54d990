"""The record in the admin: who cancelled what, when and why, and what happened to each run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.forms.models import BaseInlineFormSet
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
from django_run_cancel.admin.cancelling import CancelRunsAdminMixin
from django_run_cancel.evidence import with_evidence
from django_run_cancel.ids import CANCELLATION_PREFIX
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.outbox import retry_deliveries
from django_run_cancel.states import Delivery, words_of_status, words_of_stop

if TYPE_CHECKING:
    _Inline = admin.TabularInline[Any, Any]
    _FormSet = BaseInlineFormSet[Any, Any, Any]
else:
    _Inline = admin.TabularInline
    _FormSet = BaseInlineFormSet

SHOWN_ITEMS = 100
"""Items on the page of a cancellation; a link leads to all of them."""


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


class _ShownItems(_FormSet):
    def get_queryset(self) -> Any:
        """Return the first items, in the order of the request."""
        if not hasattr(self, "_queryset"):
            items = super().get_queryset().order_by("pk")[:SHOWN_ITEMS]
            self._queryset = with_evidence(list(items))
        return self._queryset


class CancellationItemInline(ItemColumns, ReadOnlyMixin, _Inline):
    """What happened to each run."""

    model = CancellationItem
    formset = _ShownItems
    fields = (
        "run",
        "outcome",
        "via",
        "status_before",
        "work",
        "delivery",
        "attempts",
        "last_error",
    )
    readonly_fields = fields
    classes = ("run-cancel-items",)
    extra = 0


@admin.register(Cancellation)
class CancellationAdmin(RetryMixin, FastListMixin, ReadOnlyMixin, AnyModelAdmin):
    """Requests to cancel runs."""

    class Media:
        css: ClassVar[Any] = {"all": ["django_run_cancel/admin.css"]}

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
    search_fields = ("cancellation_id",)
    search_help_text = gettext_lazy("The beginning of a cancellation's id, or a whole run id.")
    inlines = (CancellationItemInline,)
    fieldsets = (
        (None, {"fields": ("cancellation_id", "requested_at", "reason", "force")}),
        (
            gettext_lazy("Who, and from where"),
            {"fields": ("requested_by", "user", "source", "ip_address", "request_id", "tenant")},
        ),
        (
            gettext_lazy("What happened"),
            {
                "fields": (
                    "total_count",
                    "cancelled_count",
                    "failed_count",
                    "cascaded_count",
                    "all_items",
                )
            },
        ),
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find cancellations by the beginning of their id, or by a run."""
        term = search_term.strip()
        if CANCELLATION_PREFIX.startswith(term) or term.startswith(CANCELLATION_PREFIX):
            condition = starts_with("cancellation_id", term)
        else:
            of_run = CancellationItem.objects.filter(run_id=term).values("cancellation")
            condition = Q(pk__in=of_run)
        return searched(queryset, condition, term)

    def items_of(self, queryset: QuerySet[Any]) -> QuerySet[CancellationItem]:
        """Return the items of selected cancellations."""
        return CancellationItem.objects.filter(cancellation__in=queryset.values("pk"))

    @admin.display(description=gettext_lazy("reason"))
    def short_reason(self, record: Cancellation) -> str:
        """Return the beginning of the reason."""
        return Truncator(record.reason).chars(60)

    @admin.display(description=gettext_lazy("runs"))
    def all_items(self, record: Cancellation) -> Any:
        """Return a link to all items, of which the page shows the first."""
        count = record.total_count + record.cascaded_count
        text = _("All %(count)d, in a list of their own") % {"count": count}
        name = "django_run_cancel_cancellationitem_changelist"
        return link(self.admin_site, text, name, query=f"?cancellation__exact={record.pk}")


@admin.register(CancellationItem)
class CancellationItemAdmin(ItemColumns, RetryMixin, FastListMixin, ReadOnlyMixin, AnyModelAdmin):
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
