"""Warns on the pages of runs and cancellations when executors are not told by a delivery worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_run_cancel.admin.base import MAX_COUNTED, AnyModelAdmin
from django_run_cancel.admin.columns import duration, shown
from django_run_cancel.delivery.lateness import Overdue, find_lateness, find_unknown_backends

COMMAND = "python manage.py deliver_cancellations"


def warnings() -> list[Any]:
    """Return as HTML what keeps executors from being told, and what to do."""
    return [*_late_worker(), *_unknown_backends()]


def _late_worker() -> Iterator[Any]:
    late = find_lateness()
    if late is None:
        return
    if late.overdue == Overdue.DELIVERY:
        text = _("An executor should have been told {age} ago that its run is cancelled.")
    elif late.overdue == Overdue.BULK_CANCELLATION:
        text = _("A bulk cancellation has not gone on for {age}.")
    else:
        text = _("A cancelled run should have been presumed stopped {age} ago.")
    text += " " + _("Is the delivery worker running? It is started with: {command}")
    command = format_html('<code class="run-cancel-command">{}</code>', COMMAND)
    yield format_html(text, age=duration(late.duration), command=command)


def _unknown_backends() -> Iterator[Any]:
    for alias, count in find_unknown_backends(MAX_COUNTED + 1).items():
        text = ngettext(
            "{count} executor has yet to be told that its run is cancelled, but "
            "RUN_CANCEL_BACKENDS has no backend “{alias}”.",
            "{count} executors have yet to be told that their runs are cancelled, but "
            "RUN_CANCEL_BACKENDS has no backend “{alias}”.",
            count,
        )
        text += " " + _("Add it again and restart the delivery worker.")
        yield format_html(text, count=shown(count, MAX_COUNTED), alias=alias)


def warn_of_worker(page: ModelAdmin[Any], request: HttpRequest) -> None:
    """Show the warnings, if there are any, on the page that is about to be rendered."""
    for text in warnings():
        page.message_user(request, text, messages.WARNING)


class ListWarningMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]  # a base for mypy alone
    """Warns on lists; not when an action is sent, as that leads to another page."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the list."""
        if request.method == "GET":
            warn_of_worker(self, request)
        return super().changelist_view(request, extra_context)


class WorkerWarningMixin(ListWarningMixin):
    """Warns on lists and forms."""

    def render_change_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the form."""
        warn_of_worker(self, request)
        page: HttpResponse = super().render_change_form(request, *args, **kwargs)
        return page
