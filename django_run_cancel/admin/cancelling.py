"""Cancelling runs from the admin: the action, the button, the page that asks, what came of it."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import django
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from django_run_cancel.admin.base import AnyModelAdmin, link
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.ids import is_storable
from django_run_cancel.origin import Origin
from django_run_cancel.services import (
    MAX_REASON_LENGTH,
    MAX_RUN_ID_LENGTH,
    MAX_RUN_IDS,
    CancelResult,
    cancel_runs,
)
from django_run_cancel.states import ACTIVE, WAITING, Outcome, Source, Via

SAMPLE = 20
"""Runs that the page shows before it asks."""


class CancelForm(forms.Form):
    """What the page that asks sends. Whatever the number of runs, they are one field."""

    # The ids, not the filter: what is cancelled is what the page has shown.
    run_ids = forms.CharField(widget=forms.HiddenInput, max_length=MAX_RUN_IDS * 65)
    token = forms.CharField(widget=forms.HiddenInput, max_length=64)
    next = forms.CharField(widget=forms.HiddenInput, required=False)
    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        required=False,
        max_length=MAX_REASON_LENGTH,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 60, "autofocus": True}),
        help_text=gettext_lazy("For the record: people will ask why."),
    )

    force = forms.BooleanField(
        label=gettext_lazy("By force"),
        required=False,
        help_text=gettext_lazy(
            "Kill at once what has started, where its executor can. It cannot clean up then. "
            "Otherwise it is asked to stop first."
        ),
    )

    def clean_run_ids(self) -> list[str]:
        """Return the ids.

        Raises:
            ValidationError: There are too many.
        """
        run_ids: list[str] = self.cleaned_data["run_ids"].split()
        if len(run_ids) > MAX_RUN_IDS:
            raise ValidationError(too_many())
        return run_ids


class CancelRunsAdminMixin(AnyModelAdmin if TYPE_CHECKING else object):  # type: ignore[misc]
    """Adds cancelling to the ``ModelAdmin`` of a run model.

    The action "Cancel selected runs", a button on the run's page, and the page that both lead to,
    for users with the permission ``cancel_run``. Put it before ``ModelAdmin``. It cancels only
    runs of ``get_queryset()``, and their descendants.
    """

    actions: Any
    change_form_template: Any = "admin/django_run_cancel/change_form.html"

    class Media:
        css = {"all": ["django_run_cancel/admin.css"]}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Beside the actions that the host lists.
        self.actions = [*(self.actions or ()), "cancel_selected"]

    def has_cancel_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether the user may cancel runs."""
        return request.user.has_perm(f"{self.opts.app_label}.cancel_run")

    def has_force_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may cancel by force."""
        return request.user.has_perm(f"{self.opts.app_label}.force_cancel_run")

    def get_urls(self) -> list[Any]:
        """Return the pages, with that which asks before it cancels."""
        view = self.admin_site.admin_view(self.cancel_view)
        return [path("cancel/", view, name=self._cancel_url_name()), *super().get_urls()]

    def _cancel_url_name(self) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_cancel"

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        """Return the run of this primary key or, as people paste these, of this run id."""
        found = super().get_object(request, object_id, from_field)
        if found is None and is_storable(object_id, MAX_RUN_ID_LENGTH):
            found = self.get_queryset(request).filter(run_id=object_id).first()
        return found

    def link_to_run(self, run_id: str) -> Any:
        """Return a link to the page of a run."""
        name = f"{self.opts.app_label}_{self.opts.model_name}_change"
        return link(run_id, name, quote(run_id))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show a run, with the button when it can be cancelled."""
        button = self.has_cancel_permission(request) and reverse(
            f"admin:{self._cancel_url_name()}", current_app=self.admin_site.name
        )
        context = {**(extra_context or {}), "cancel_url": button, "active_statuses": ACTIVE}
        page: HttpResponse = super().change_view(request, object_id, form_url, context)
        return page

    def response_action(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Run an action on the rows that were ticked."""
        try:
            return super().response_action(request, *args, **kwargs)
        except (ValueError, ValidationError, OverflowError):
            # Django looks for whatever was sent as a primary key.
            self.message_user(request, _("There are no such runs."), messages.ERROR)
            return None

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

    if django.VERSION >= (6, 1):
        cancel_selected.locations = list(admin.ActionLocation)  # type: ignore[attr-defined]

    def cancel_view(self, request: HttpRequest) -> HttpResponse:
        """Ask, and on POST cancel.

        Raises:
            PermissionDenied: The user may not cancel.
        """
        if not self.has_cancel_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            run_id = request.GET.get("run_id", "")
            return self._ask(request, [run_id], run_id and self._page_of(run_id))
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
        if not result.is_replay:
            self._log(request, result)
        self._tell(request, result)
        return HttpResponseRedirect(self._next(request, form.cleaned_data["next"]))

    def _form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> CancelForm:
        form = CancelForm(*args, **kwargs)
        if not self.has_force_permission(request):
            del form.fields["force"]
        return form

    def _page_of(self, run_id: str) -> str:
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_change"
        return reverse(name, args=[quote(run_id)], current_app=self.admin_site.name)

    def _next(self, request: HttpRequest, url: str) -> str:
        if url_has_allowed_host_and_scheme(url, None, require_https=request.is_secure()):
            return url
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"
        return reverse(name, current_app=self.admin_site.name)

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
        initial = {"run_ids": " ".join(run_ids), "token": uuid.uuid4().hex, "next": back}
        if form is not None:
            # The errors and the reason stay; the token is new, so that it can be sent again.
            form.data = {**form.data.dict(), "token": initial["token"]}  # type: ignore[attr-defined]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "title": _("Cancel these runs?"),
            "form": form or self._form(request, initial=initial),
            "action": reverse(f"admin:{self._cancel_url_name()}", current_app=self.admin_site.name),
            "back": self._next(request, form.data.get("next", "") if form else back),
            "counts": _counts(plan),
            "sample": [(by_id.get(item.run_id), item) for item in requested[:SAMPLE]],
            "more": len(requested) - SAMPLE,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/django_run_cancel/confirm.html", context)

    def _log(self, request: HttpRequest, result: CancelResult) -> None:
        """Write into the history of each run that this request has changed."""
        if result.cancellation is None:
            return  # nothing was asked for
        text = _("Cancelled with %(cancellation)s.") % {"cancellation": result.cancellation}
        runs = self.model._base_manager.filter(cancellation=result.cancellation)
        message = f"{text} {result.cancellation.reason}".strip()
        user: Any = request.user  # not anonymous
        LogEntry.objects.log_actions(user.pk, runs, CHANGE, message)

    def _tell(self, request: HttpRequest, result: CancelResult) -> None:
        """Say what happened, with a link to the record."""
        counts = _counts(result)
        see: Any = ""
        if request.user.has_perm("django_run_cancel.view_cancellation") and result.cancellation:
            name = "django_run_cancel_cancellation_change"
            see = link(_("What happened to each"), name, result.cancellation.pk)
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


RESULTS = (
    (
        messages.SUCCESS,
        Outcome.CANCELLED,
        ngettext_lazy("%d run has been cancelled.", "%d runs have been cancelled."),
    ),
    (
        messages.SUCCESS,
        "below",
        ngettext_lazy(
            "%d run below has been cancelled with it.", "%d runs below have been cancelled too."
        ),
    ),
    (
        messages.INFO,
        "stopping",
        ngettext_lazy(
            "%d of these had started: cancelled, stopping.",
            "%d of these had started: cancelled, stopping.",
        ),
    ),
    (
        messages.INFO,
        Outcome.ALREADY_CANCELLED,
        ngettext_lazy("%d run was cancelled before.", "%d runs were cancelled before."),
    ),
    (
        messages.WARNING,
        Outcome.ALREADY_FINISHED,
        ngettext_lazy(
            "%d run had finished and stays as it is.",
            "%d runs had finished and stay as they are.",
        ),
    ),
    (
        messages.WARNING,
        Outcome.NOT_FOUND,
        ngettext_lazy("%d run does not exist.", "%d runs do not exist."),
    ),
)
"""What to say of each count. Plurals of other languages may differ where English ones do not."""


def too_many() -> str:
    """Return what to say to somebody who selects more runs than one request takes."""
    return _(
        "More than %(count)d runs are selected, and nothing has been cancelled. Select fewer with "
        "the filters, or use the command manage.py cancel_runs, which takes any number."
    ) % {"count": MAX_RUN_IDS}
