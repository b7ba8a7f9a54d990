"""What lists say at their top: executors that could not be told, and runs that go on stopping."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_run_cancel.admin.base import MAX_COUNTED, AddressMixin, AnyModelAdmin, link
from django_run_cancel.admin.columns import duration, shown
from django_run_cancel.conf import settings
from django_run_cancel.models import CancellationItem
from django_run_cancel.states import Delivery, StopState

OLDEST_STOPPING = 1_000
"""Runs that are stopping, of which those are counted that should have stopped."""


def announce_failed_deliveries(page: ModelAdmin[Any], request: HttpRequest) -> None:
    """Say how many executors could not be told, with a link for who may see which."""
    failed = CancellationItem.objects.filter(delivery=Delivery.FAILED)[: MAX_COUNTED + 1].count()
    if not failed:
        return
    text = ngettext(
        "%(count)s executor could not be told that its run is cancelled.",
        "%(count)s executors could not be told that their runs are cancelled.",
        failed,
    )
    about = {"count": shown(failed, MAX_COUNTED)}
    see: Any = ""
    if request.user.has_perm("django_run_cancel.view_cancellationitem"):
        name, query = "django_run_cancel_cancellationitem_changelist", "?delivery__exact=failed"
        see = link(page.admin_site, _("See which"), name, query=query)
    page.message_user(request, format_html("{} {}", text % about, see), messages.ERROR)


class FailedDeliveriesMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Says on lists that executors could not be told."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the list, and first of all what needs a hand."""
        if request.method == "GET" and self.has_view_permission(request):
            announce_failed_deliveries(self, request)
        return super().changelist_view(request, extra_context)


class StoppingMixin(FailedDeliveriesMixin, AddressMixin):
    """Says on the list of runs also which of them should have stopped by now."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the list."""
        if request.method == "GET" and self.has_view_permission(request):
            self._announce_stopping(request)
        return super().changelist_view(request, extra_context)

    def _announce_stopping(self, request: HttpRequest) -> None:
        stopping = self.get_queryset(request).filter(stop_state=StopState.STOPPING)
        cancelled_at = stopping.order_by("created_at").values_list("finished_at", flat=True)
        moments = filter(None, cancelled_at[: OLDEST_STOPPING + 1])
        spans = [timezone.now() - moment for moment in moments]
        late = [span for span in spans if span > timedelta(seconds=settings.GRACE_SECONDS)]
        if not late:
            return
        if len(late) > OLDEST_STOPPING:
            text = _(
                "More than %(count)s cancelled runs are still stopping, the longest for %(age)s."
            )
        else:
            text = ngettext(
                "%(count)s cancelled run is still stopping, for %(age)s.",
                "%(count)s cancelled runs are still stopping, the longest for %(age)s.",
                len(late),
            )
        about = {"count": shown(min(len(late), OLDEST_STOPPING)), "age": duration(max(late))}
        see = link(
            self.admin_site, _("See which"), self._name("changelist"), query="?stop_state=stopping"
        )
        self.message_user(request, format_html("{} {}", text % about, see), messages.WARNING)
