"""Warns on the pages of runs and cancellations when the delivery worker seems to be down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext as _

from django_run_cancel.admin.base import AnyModelAdmin
from django_run_cancel.admin.columns import duration
from django_run_cancel.delivery.lateness import Overdue, find_lateness

COMMAND = "python manage.py deliver_cancellations"


def worker_warning() -> Any:
    """Return what is late and how to start the worker, as HTML; blank while nothing is late."""
    late = find_lateness()
    if late is None:
        return ""
    if late.overdue == Overdue.DELIVERY:
        text = _("An executor should have been told {age} ago that its run is cancelled.")
    elif late.overdue == Overdue.BULK_CANCELLATION:
        text = _("A bulk cancellation has not gone on for {age}.")
    else:
        text = _("A cancelled run should have been presumed stopped {age} ago.")
    text += " " + _("Is the delivery worker running? It is started with: {command}")
    command = format_html('<code class="run-cancel-command">{}</code>', COMMAND)
    return format_html(text, age=duration(late.duration), command=command)


def warn_of_worker(page: ModelAdmin[Any], request: HttpRequest) -> None:
    """Show the warning, if there is one, on the page that is about to be rendered."""
    if text := worker_warning():
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
