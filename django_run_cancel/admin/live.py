"""Pages with a summary at the top that a script keeps up to date."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import path
from django.utils import timezone

from django_run_cancel.admin.base import STYLES, AddressMixin
from django_run_cancel.admin.columns import clock
from django_run_cancel.admin.worker import ListWarningMixin, warnings

REFRESH_SECONDS = 3
"""Between two looks at something that goes on, while its page is in sight."""


class LiveSummaryMixin(ListWarningMixin, AddressMixin):
    """Adds a summary at the top of the page of a row, and the way to bring it up to date.

    Attributes:
        summary_template: The template of the summary alone.
    """

    summary_template: str

    @property
    def media(self) -> forms.Media:
        """Return the scripts and styles of the pages; not as a class, which the host may have."""
        media: forms.Media = super().media
        return media + forms.Media(css=STYLES, js=["django_run_cancel/summary.js"])

    def get_urls(self) -> list[Any]:
        """Return the pages: also the summary alone, for the script that keeps it up to date."""
        view = self.admin_site.admin_view(self.summary_view)
        return [
            path("<path:object_id>/summary/", view, name=self._name("summary")),
            *super().get_urls(),
        ]

    def summary_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Return only the summary of the page. Messages stay for the next whole page.

        Raises:
            PermissionDenied: The user may not look at such rows.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method != "GET":
            return HttpResponseNotAllowed(["GET"])
        page: HttpResponse = self.change_view(request, object_id)
        if isinstance(page, TemplateResponse):
            page.template_name = self.summary_template
        return page

    def render_change_form(
        self,
        request: HttpRequest,
        context: Any,
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        """Show a row, with its summary."""
        if obj is not None:
            context |= {
                "summary_url": self._url("summary", quote(obj.pk)),
                "refresh_seconds": REFRESH_SECONDS,
                "warnings": warnings(),
                "as_of": clock(timezone.now()),
                **self.summary_of(request, obj),
            }
        page: HttpResponse = super().render_change_form(
            request, context, add, change, form_url, obj
        )
        return page

    def summary_of(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Return what the summary says of a row; ``refresh_seconds`` is None once that is final."""
        raise NotImplementedError
