"""Cancelling runs from the admin: the action, the button, the page that asks, what came of it."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import OperationalError, connections
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_run_cancel.admin.base import AnyModelAdmin, link
from django_run_cancel.admin.forms import RESULTS, CancelForm, too_many
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.ids import is_storable
from django_run_cancel.origin import Origin
from django_run_cancel.services import (
    MAX_RUN_ID_LENGTH,
    MAX_RUN_IDS,
    CancelResult,
    cancel_runs,
)
from django_run_cancel.states import ACTIVE, WAITING, Outcome, Source, StopState, Via

MAX_KEY_LENGTH = 255

SAMPLE = 20
"""Runs that the page shows before it asks."""


class CancelRunsAdminMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]
    """Adds cancelling to the ``ModelAdmin`` of a run model.

    The action "Cancel selected runs", a button on the run's page, and the page that both lead to,
    for users with the permission ``cancel_run``. Put it before ``ModelAdmin``. It cancels only
    runs of ``get_queryset()``, and their descendants.
    """

    actions: Any
    change_form_template: Any = "admin/django_run_cancel/change_form.html"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Beside the actions that the host lists, unless it wants none.
        if self.actions is not None:
            self.actions = [*self.actions, "cancel_selected"]

    @property
    def media(self) -> forms.Media:
        """Return the scripts and styles of the pages; not as a class, which the host may have."""
        media: forms.Media = super().media
        return media + forms.Media(css={"all": ["django_run_cancel/admin.css"]})

    def has_cancel_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether the user may cancel runs."""
        return request.user.has_perm(f"{self.opts.app_label}.cancel_run")

    def has_force_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may cancel by force."""
        return request.user.has_perm(f"{self.opts.app_label}.force_cancel_run")

    def get_urls(self) -> list[Any]:
        """Return the pages: also that which asks before it cancels, and the way to a run's."""
        views = {
            "cancel": path("cancel/", self.admin_site.admin_view(self.cancel_view)),
            "by_run_id": path("by-run-id/", self.admin_site.admin_view(self.by_run_id_view)),
        }
        for name, pattern in views.items():
            pattern.name = f"{self.opts.app_label}_{self.opts.model_name}_{name}"
        return [*views.values(), *super().get_urls()]

    def _url(self, page: str, *args: Any, **query: str) -> str:
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_{page}"
        url = reverse(name, args=args, current_app=self.admin_site.name)
        return f"{url}?{urlencode(query)}" if query else url

    def link_to_run(self, run_id: str) -> Any:
        """Return a link to the page of a run."""
        return format_html('<a href="{}">{}</a>', self._url("by_run_id", run_id=run_id), run_id)

    def by_run_id_view(self, request: HttpRequest) -> HttpResponse:
        """Go on to the page of the run with the id in ``run_id``."""
        run_id = request.GET.get("run_id", "")
        runs = self.get_queryset(request)
        # A text that no database can hold is the id of no run.
        found = is_storable(run_id, MAX_RUN_ID_LENGTH) and runs.filter(run_id=run_id).first()
        if not found:
            gone: HttpResponse = self._get_obj_does_not_exist_redirect(request, self.opts, run_id)
            return gone
        return HttpResponseRedirect(self._url("change", quote(found.pk)))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show a run, with the button when it can be cancelled."""
        button = self.has_cancel_permission(request) and self._url("cancel")
        context = {**(extra_context or {}), "cancel_url": button, "active_statuses": ACTIVE}
        page: HttpResponse = super().change_view(request, object_id, form_url, context)
        return page

    def response_action(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Run an action on the rows that were ticked."""
        pk = self.opts.pk
        try:
            for key in request.POST.getlist(ACTION_CHECKBOX_NAME):
                if not is_storable(key, MAX_KEY_LENGTH):
                    raise ValidationError(key)
                pk.run_validators(pk.to_python(key))
        except ValidationError:
            # Django would look for it all the same, and fail.
            self.message_user(request, _("There are no such runs."), messages.ERROR)
            return None
        return super().response_action(request, *args, **kwargs)

    @admin.action(
        permissions=["cancel"],
        description=gettext_lazy("Cancel selected %(verbose_name_plural)s"),
    )
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask before the selected runs are cancelled."""
        run_ids = list(queryset.order_by("pk").values_list("run_id", flat=True)[: MAX_RUN_IDS + 1])
        if len(run_ids) > MAX_RUN_IDS:
            self.message_user(request, too_many(), messages.ERROR)
            return None
        return self._ask(request, run_ids, request.get_full_path())

    # Django 6.1 and newer: in the list and on the page of a run.
    cancel_selected.locations = list(getattr(admin, "ActionLocation", ()))  # type: ignore[attr-defined]

    def cancel_view(self, request: HttpRequest) -> HttpResponse:
        """Ask, and on POST cancel.

        Raises:
            PermissionDenied: The user may not cancel, or not look.
        """
        if not (self.has_view_permission(request) and self.has_cancel_permission(request)):
            raise PermissionDenied
        if request.method != "POST":
            run_id = request.GET.get("run_id", "")
            return self._ask(request, [run_id], run_id and self._url("by_run_id", run_id=run_id))
        form = self._form(request, request.POST)
        if not form.is_valid():
            return self._ask(request, form.cleaned_data.get("run_ids", []), "", form)
        try:
            result = cancel_runs(
                form.cleaned_data["run_ids"],
                runs=self.get_queryset(request),
                requested_by=request.user,  # type: ignore[arg-type]  # it has a permission
                source=Source.ADMIN,
                origin=Origin.of(request),
                reason=form.cleaned_data["reason"],
                force=form.cleaned_data.get("force", False),
                # The same page sent twice is one request.
                idempotency_key=form.cleaned_data["token"],
            )
        except IdempotencyKeyReused:
            form.add_error(
                "reason",
                _("This page was sent before, with other entries. Nothing has been changed now."),
            )
            return self._ask(request, form.cleaned_data["run_ids"], "", form)
        except OperationalError:
            if connections[self.get_queryset(request).db].in_atomic_block:
                raise  # of the host's transaction nothing can be saved
            form.add_error(
                "reason", _("The database is busy. Nothing has been changed: please send it again.")
            )
            return self._ask(request, form.cleaned_data["run_ids"], "", form)
        if not result.is_replay:
            self._log(request, result)
        self._tell(request, result)
        return HttpResponseRedirect(self._next(request, form.cleaned_data["next"]))

    def _form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> CancelForm:
        form = CancelForm(*args, **kwargs)
        if not self.has_force_permission(request):
            del form.fields["force"]
        return form

    def _next(self, request: HttpRequest, url: str) -> str:
        if url_has_allowed_host_and_scheme(url, None, require_https=request.is_secure()):
            return url
        return self._url("changelist")

    def _ask(
        self, request: HttpRequest, run_ids: list[str], back: str, form: CancelForm | None = None
    ) -> HttpResponse:
        """Return the page that says what would happen, and asks."""
        runs = self.get_queryset(request)
        user: Any = request.user  # not anonymous: it has a permission
        plan = cancel_runs(run_ids, runs=runs, requested_by=user, dry_run=True)
        requested = sorted(
            (item for item in plan.items if item.via == Via.REQUESTED),
            key=lambda item: list(Outcome).index(item.outcome),
        )
        found = [item.run_id for item in requested[:SAMPLE] if item.previous_status]
        by_id = {run.run_id: run for run in runs.filter(run_id__in=found)}
        initial = {"run_ids": run_ids, "token": uuid.uuid4().hex, "next": back}
        if form is not None:
            # The errors and what was entered stay; the token is new, so that it can be sent again.
            again = {"token": initial["token"], "run_ids": json.dumps(run_ids)}
            form.data = {**form.data.dict(), **again}  # type: ignore[attr-defined]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "title": _("Cancel these runs?"),
            "form": form or self._form(request, initial=initial),
            "action": self._url("cancel"),
            "back": self._next(request, form.data.get("next", "") if form else back),
            "counts": _counts(plan),
            "sample": [(by_id.get(item.run_id), item) for item in requested[:SAMPLE]],
            "more": len(requested) - SAMPLE,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/django_run_cancel/confirm.html", context)

    def _log(self, request: HttpRequest, result: CancelResult) -> None:
        """Write into the history of each run that was asked for and changed."""
        record: Any = result.cancellation  # there is one: the form has named runs
        asked = [item.run_id for item in result.items if item.via == Via.REQUESTED]
        runs = self.model._base_manager.filter(cancellation=record, run_id__in=asked)
        text = _("Cancelled with %(cancellation)s.") % {"cancellation": record}
        user: Any = request.user  # not anonymous
        LogEntry.objects.log_actions(user.pk, runs, CHANGE, f"{text} {record.reason}".strip())

    def _tell(self, request: HttpRequest, result: CancelResult) -> None:
        """Say what happened, with a link to the record."""
        counts = _counts(result)
        record: Any = result.cancellation
        changed = self.model._base_manager.filter(cancellation=record)
        # Also those that waited for another attempt.
        counts["stopping"] = changed.filter(stop_state=StopState.STOPPING).count()
        see: Any = ""
        if request.user.has_perm("django_run_cancel.view_cancellation"):
            name = "django_run_cancel_cancellation_change"
            see = link(self.admin_site, _("What happened to each"), name, record.pk)
        for level, what, text in RESULTS:
            if counts[what]:
                self.message_user(request, format_html("{} {}", text % counts[what], see), level)
                see = ""


def _counts(result: CancelResult) -> Counter[str]:
    """Count what happened; ``below`` and ``stopping`` are parts of all that was cancelled."""
    counts = Counter[str]()
    for item in result.items:
        below = item.via == Via.CASCADE
        counts["below" if below else item.outcome] += 1
        if item.outcome == Outcome.CANCELLED:
            counts["all"] += 1
            counts["stopping"] += item.previous_status not in WAITING
    return counts
