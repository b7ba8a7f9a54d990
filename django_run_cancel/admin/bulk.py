"""The page that asks before all runs of a list are cancelled, on all of its pages."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_run_cancel.admin.columns import shown
from django_run_cancel.admin.confirm import ConfirmMixin
from django_run_cancel.admin.forms import BulkCancelForm
from django_run_cancel.admin.selection_words import describe
from django_run_cancel.admin.selections import (
    NoSelection,
    PartialSearch,
    Selection,
    select,
    select_again,
)
from django_run_cancel.cancellation.bulk import (
    preview_bulk_cancellation,
    start_bulk_cancellation,
)
from django_run_cancel.exceptions import IdempotencyKeyReused


class BulkMixin(ConfirmMixin):
    """The page to which "Select all" leads. What it starts, delivery workers carry out."""

    def cancel_all_view(self, request: HttpRequest) -> HttpResponse:
        """Ask, and on POST start to cancel.

        Raises:
            PermissionDenied: The user may not cancel, or not look.
        """
        if not (self.has_view_permission(request) and self.has_cancel_permission(request)):
            raise PermissionDenied
        try:
            if request.method != "POST":
                query = request.META.get("QUERY_STRING", "")
                return self._ask_about_all(request, select(self, request, query))
            selection = select_again(self, request, request.POST.get("selection", ""))
        except NoSelection as refused:
            if isinstance(refused, PartialSearch):
                text = _(
                    "The search has looked at the newest runs only, and nothing has been "
                    "cancelled. Filter the list further, so that all of it is searched."
                )
            else:
                text = _(
                    "It is not clear which runs are meant, and nothing has been cancelled. Filter "
                    "the list again, and select all."
                )
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(self._url("changelist"))
        return self._start(request, selection)

    def _start(self, request: HttpRequest, selection: Selection) -> HttpResponse:
        form = self._bulk_form(request, selection, request.POST)
        if not form.is_valid():
            return self._ask_about_all(request, selection, form)
        try:
            started = start_bulk_cancellation(
                selection.rows,
                selection={"filter": selection.filters},
                force=form.cleaned_data.get("force", False),
                **self._request_fields(request, form),
            )
        except (IdempotencyKeyReused, OperationalError) as error:
            self._explain(request, form, error)
            return self._ask_about_all(request, selection, form)
        count = started.cancellation.total_count
        text = ngettext(
            "%(count)s run is being cancelled by the delivery worker.",
            "%(count)s runs are being cancelled by the delivery worker.",
            count,
        )
        if count:
            self.message_user(request, text % {"count": shown(count)}, messages.SUCCESS)
        else:
            text = _("There is nothing left to cancel.")
            self.message_user(request, text, messages.WARNING)
        landing = self.url_of_record(request, started.cancellation)
        return HttpResponseRedirect(landing or self._list_of(selection))

    def _bulk_form(
        self, request: HttpRequest, selection: Selection, *args: Any, **kwargs: Any
    ) -> BulkCancelForm:
        form = BulkCancelForm(*args, **kwargs)
        if not selection.is_everything:
            del form.fields["everything"]
        if not self.has_force_permission(request):
            del form.fields["force"]
        return form

    def _list_of(self, selection: Selection) -> str:
        return self._url("changelist") + (selection.query and f"?{selection.query}")

    def _ask_about_all(
        self, request: HttpRequest, selection: Selection, form: BulkCancelForm | None = None
    ) -> HttpResponse:
        user: Any = request.user  # not anonymous: it has a permission
        preview = preview_bulk_cancellation(selection.rows, requested_by=user)
        initial = {"selection": selection.signed(request), "token": uuid.uuid4().hex}
        if form is not None:
            # The errors and what was entered stay; the token is new, so that it can be sent again.
            form.data = {**QueryDict.dict(request.POST), "token": initial["token"]}
        context = {
            **self._plan(request, preview.sample),
            "title": _("Cancel all of these runs?"),
            "preview": preview,
            "preview_shown": shown(preview.count),
            "filters": describe(selection.filters),
            "form": form or self._bulk_form(request, selection, initial=initial),
            "action": self._url("cancel_all"),
            "back": self._list_of(selection),
        }
        return self._render(request, context)
