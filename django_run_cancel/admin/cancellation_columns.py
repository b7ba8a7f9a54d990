"""Columns of the lists of cancellations and of their items, and the lists that fill them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_run_cancel.admin.base import (
    MAX_COUNTED,
    AnyModelAdmin,
    CappedChangeList,
    link,
)
from django_run_cancel.admin.columns import age, short_id, shown
from django_run_cancel.admin.items import titles_of
from django_run_cancel.admin.overview import badge_of
from django_run_cancel.cancellation.evidence import with_evidence
from django_run_cancel.cancellation.progress import progress_of
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import Delivery, StopState, words_of_stop


class CancellationChangeList(CappedChangeList):
    """Knows of each cancellation on a page how far it is, and what needs a hand.

    Of runs that are stopping, and of failed deliveries, no more than ``MAX_COUNTED`` are read.
    """

    def get_results(self, request: HttpRequest) -> None:
        """Read a page of the list."""
        super().get_results(request)
        rows: list[Any] = list(self.result_list)
        progress = progress_of(rows)
        runs = get_run_model()._base_manager.filter(stop_state=StopState.STOPPING)
        failed = CancellationItem.objects.filter(delivery=Delivery.FAILED)
        stopping, untold = (
            set(found.order_by().values_list("cancellation", flat=True)[:MAX_COUNTED])
            for found in (runs, failed)
        )
        for row in rows:
            row.progress = progress[row.pk]
            row.is_stopping = row.pk in stopping
            row.is_untold = row.pk in untold
        self.result_list = rows


class CancellationColumns(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Columns of the list of cancellations."""

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> Any:
        """Return the list that fills the columns."""
        return CancellationChangeList

    @admin.display(description=gettext_lazy("requested by"))
    def who_and_why(self, record: Cancellation) -> Any:
        """Return who asked, and below it the beginning of the reason."""
        reason = Truncator(record.reason).chars(60)
        return format_html("{}<br>{}", record.requested_by, reason)

    @admin.display(description=gettext_lazy("state"))
    def state_now(self, record: Any) -> Any:
        """Return how far the cancellation is, and below it whether executors could not be told."""
        badge = badge_of(record, record.progress, is_stopping=record.is_stopping)
        if record.is_untold:
            return format_html("{}<br>{}", badge, _("failed deliveries"))
        return badge

    @admin.display(description=gettext_lazy("cancelled"))
    def counts(self, record: Any) -> Any:
        """Return how many of the runs that were asked for are cancelled, and how many below."""
        progress = record.progress
        count, total = shown(progress.cancelled_count), shown(progress.total_count)
        of_total = _("%(count)s of %(total)s") % {"count": count, "total": total}
        if not progress.cascaded_count:
            return of_total
        below = _("%(count)s below") % {"count": shown(progress.cascaded_count)}
        return format_html("{}<br>{}", of_total, below)

    @admin.display(description=gettext_lazy("cancellation"))
    def id_and_source(self, record: Cancellation) -> Any:
        """Return the id, shortened, and below it from where the request came."""
        return format_html(
            "{}<br>{}", short_id(record.cancellation_id), record.get_source_display()
        )

    @admin.display(description=gettext_lazy("age"), ordering="requested_at")
    def age(self, record: Cancellation) -> Any:
        """Return how long ago the request came."""
        return age(record.requested_at)


class ItemChangeList(CappedChangeList):
    """Knows the title of the run of each item on a page, and how its code has ended."""

    def get_results(self, request: HttpRequest) -> None:
        """Read a page of the list."""
        super().get_results(request)
        rows: list[Any] = with_evidence(list(self.result_list))
        titles = titles_of(request, self.model_admin.admin_site, rows)
        for row in rows:
            row.title = titles.get(row.run_id, "")
        self.result_list = rows


class ItemColumns(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Columns of the list of items."""

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> Any:
        """Return the list that fills the columns."""
        return ItemChangeList

    @admin.display(description=gettext_lazy("run"))
    def title_and_id(self, item: Any) -> Any:
        """Return what to call the run, and below it the id, shortened."""
        run_id = short_id(item.run_id)
        return format_html("{}<br>{}", item.title, run_id) if item.title else run_id

    @admin.display(description=gettext_lazy("outcome"))
    def result(self, item: CancellationItem) -> Any:
        """Return the outcome, and why the run is part of the cancellation."""
        return f"{item.get_outcome_display()} ({item.get_via_display()})"

    @admin.display(description=gettext_lazy("state now"))
    def work(self, item: Any) -> Any:
        """Return how the code of the run has ended, in words."""
        return words_of_stop(item.stop_state) or "-"

    @admin.display(description=gettext_lazy("executor told"))
    def told(self, item: CancellationItem) -> Any:
        """Return whether the executor was told, and below it the beginning of the error."""
        error = Truncator(item.last_error).chars(80)
        state = item.get_delivery_display()
        return format_html("{}<br>{}", state, error) if error else state

    @admin.display(description=gettext_lazy("cancellation"))
    def record(self, item: CancellationItem) -> Any:
        """Return who asked, with a link to the cancellation, and below it the id, shortened."""
        record = item.cancellation
        name = "django_run_cancel_cancellation_change"
        who = link(self.admin_site, record.requested_by, name, record.pk)
        return format_html("{}<br>{}", who, short_id(record.cancellation_id))
