"""The page of a cancellation: how far it is, what came of each run, and its abort and retry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_run_cancel.admin import overview
from django_run_cancel.admin.base import MAX_COUNTED
from django_run_cancel.admin.columns import shown
from django_run_cancel.admin.items import chosen_of, table_of
from django_run_cancel.admin.live import REFRESH_SECONDS, LiveSummaryMixin
from django_run_cancel.admin.mixins import CancelRunsAdminMixin
from django_run_cancel.admin.overview import Overview, overview_of
from django_run_cancel.admin.worker import warn_of_worker
from django_run_cancel.cancellation.bulk import abort_bulk_cancellation, retry_bulk_cancellation
from django_run_cancel.delivery.outbox import retry_deliveries
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import Delivery, StopState

REFRESH_SECONDS_OF_LARGE = 10
"""Between two looks at a cancellation of so many runs that counting them takes a while."""


class CancellationPageMixin(LiveSummaryMixin):
    """Adds the summary, the table of the runs, and the pages that abort and try again."""

    summary_template = "admin/django_run_cancel/cancellation_summary.html"
    change_form_template: Any = "admin/django_run_cancel/change_form_cancellation.html"

    if TYPE_CHECKING:

        def has_cancel_permission(self, request: HttpRequest) -> bool: ...

    def get_urls(self) -> list[Any]:
        """Return the pages: also those that ask before something is aborted or tried again."""
        views = {"abort": self.abort_view, "retry": self.retry_view}
        return [
            *(
                path(
                    f"<path:object_id>/{name}/",
                    self.admin_site.admin_view(view),
                    name=self._name(name),
                )
                for name, view in views.items()
            ),
            *super().get_urls(),
        ]

    def summary_of(self, request: HttpRequest, record: Cancellation) -> dict[str, Any]:
        """Return what the summary says of a cancellation."""
        found = overview_of(record)
        may_cancel = self.has_cancel_permission(request)
        seconds = REFRESH_SECONDS_OF_LARGE if found.is_large else REFRESH_SECONDS
        context = {
            "refresh_seconds": seconds if found.is_live else None,
            "badge": overview.badge(found),
            "since": overview.since(record),
            "facts": list(overview.facts(found)),
            "bar": overview.bar(found),
            "totals": list(overview.totals(found)),
            "abort_url": may_cancel and found.can_abort and self._url("abort", quote(record.pk)),
            "retry_url": may_cancel and found.can_retry and self._url("retry", quote(record.pk)),
            "kill_url": found.stops[StopState.STOPPING] and self._kill_url(request, record),
        }
        if request.user.has_perm("django_run_cancel.view_cancellationitem"):
            context["items"] = table_of(request, self.admin_site, record)
            if chosen := chosen_of(request):
                query = QueryDict(mutable=True)
                query.update(chosen)
                url = self._url("summary", quote(record.pk))
                context["summary_url"] = f"{url}?{query.urlencode()}"
        return context

    def _kill_url(self, request: HttpRequest, record: Cancellation) -> str:
        """Return the address of the page that kills what still stops; blank for who may not."""
        page = self.admin_site._registry.get(get_run_model())
        if not isinstance(page, CancelRunsAdminMixin):
            return ""
        if not (page.has_view_permission(request) and page.has_kill_permission(request)):
            return ""
        query = {
            "cancellation_id": record.cancellation_id,
            "next": self._url("change", quote(record.pk)),
        }
        return f"{page._url('kill')}?{urlencode(query)}"

    def abort_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, and on POST cancel no more of the runs that were asked for.

        Raises:
            PermissionDenied: The user may not cancel, or not look.
        """
        record = self._record_of(request, object_id)
        if record is None:
            return self._gone(request, object_id)
        if request.method == "POST":
            if abort_bulk_cancellation(record):
                text = _("The cancellation has been aborted. What is cancelled stays so.")
                self.message_user(request, text, messages.SUCCESS)
            else:
                text = _("There was nothing left to abort.")
                self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self._url("change", quote(record.pk)))
        found = overview_of(record)
        texts = [_("There is nothing left to abort.")]
        if found.can_abort:
            left = found.progress.total_count - found.progress.processed_count
            text = ngettext(
                "%(count)s run that is not cancelled yet will go on.",
                "%(count)s runs that are not cancelled yet will go on.",
                left,
            )
            texts = [
                text % {"count": shown(left)},
                _("What is cancelled stays cancelled, with what is below it."),
            ]
        yes = found.can_abort and _("Yes, abort")
        return self._ask(request, record, _("Abort this cancellation?"), texts, yes)

    def retry_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, and on POST try again what has failed.

        Raises:
            PermissionDenied: The user may not cancel, or not look.
        """
        record = self._record_of(request, object_id)
        if record is None:
            return self._gone(request, object_id)
        if request.method == "POST":
            count = retry_bulk_cancellation(record)
            count += retry_deliveries(CancellationItem.objects.filter(cancellation=record))
            if count:
                text = ngettext(
                    "%(count)s of these is tried again.",
                    "%(count)s of these are tried again.",
                    count,
                )
                self.message_user(request, text % {"count": shown(count)}, messages.SUCCESS)
            else:
                self.message_user(request, _("Nothing has failed."), messages.WARNING)
            return HttpResponseRedirect(self._url("change", quote(record.pk)))
        found = overview_of(record)
        texts = list(_failures(found)) or [_("Nothing has failed.")]
        yes = found.can_retry and _("Yes, try again")
        return self._ask(request, record, _("Try again what has failed?"), texts, yes)

    def _record_of(self, request: HttpRequest, object_id: str) -> Cancellation | None:
        if not (self.has_view_permission(request) and self.has_cancel_permission(request)):
            raise PermissionDenied
        record: Cancellation | None = self.get_object(request, unquote(object_id))
        return record

    def _gone(self, request: HttpRequest, object_id: str) -> HttpResponse:
        gone: HttpResponse = self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        return gone

    def _ask(
        self, request: HttpRequest, record: Cancellation, title: str, texts: list[str], yes: Any
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "title": title,
            "row_name": record,
            "row_url": self._url("change", quote(record.pk)),
            "texts": texts,
            "yes": yes,
        }
        warn_of_worker(self, request)
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/django_run_cancel/ask_cancellation.html", context)


def _failures(found: Overview) -> Iterator[str]:
    if count := found.failed_chunks:
        text = ngettext(
            "%(count)s run could not be written.", "%(count)s runs could not be written.", count
        )
        yield text % {"count": shown(count, MAX_COUNTED)}
    if count := found.failed_deliveries:
        text = ngettext(
            "%(count)s executor could not be told that its run is cancelled.",
            "%(count)s executors could not be told that their runs are cancelled.",
            count,
        )
        yield text % {"count": shown(count, MAX_COUNTED)}
        failed = CancellationItem.objects.filter(
            cancellation=found.record, delivery=Delivery.FAILED
        )
        if error := failed.exclude(last_error="").values_list("last_error", flat=True).first():
            yield _("One of the errors: %s") % error
    if count := found.failed_handlings:
        text = ngettext("%(count)s handler has failed.", "%(count)s handlers have failed.", count)
        yield text % {"count": shown(count, MAX_COUNTED)}
