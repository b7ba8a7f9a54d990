"""The pages that ask before runs are cancelled or killed, and what they do on a yes."""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from typing import Any, Literal

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, OperationalError, connections, router, transaction
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _

from django_run_cancel.admin.base import AddressMixin, link
from django_run_cancel.admin.columns import shown
from django_run_cancel.admin.forms import RESULTS, CancelForm
from django_run_cancel.admin.worker import warn_of_worker
from django_run_cancel.cancellation.arguments import MAX_RUN_ID_LENGTH, MAX_RUN_IDS
from django_run_cancel.cancellation.force import told_by_force
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.results import CancelResult
from django_run_cancel.cancellation.service import cancel_runs
from django_run_cancel.conf import settings
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.models import Cancellation
from django_run_cancel.models.ids import is_storable
from django_run_cancel.safe_text import describe_error, printable_lines
from django_run_cancel.states import WAITING, Outcome, Source, StopState, Via

logger = logging.getLogger("django_run_cancel")

Page = Literal["cancel", "kill"]
"""Which of the two pages that ask about single runs."""

SAMPLE = 20
"""Runs that a page shows before it asks, and as many of those below them."""

RECORD_PAGE = "django_run_cancel_cancellation_change"


class ConfirmMixin(AddressMixin):
    """The page that asks before single runs are cancelled, or one is killed."""

    def has_cancel_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether the user may cancel runs."""
        return request.user.has_perm(f"{self.opts.app_label}.cancel_run")

    def has_force_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may cancel by force."""
        return request.user.has_perm(f"{self.opts.app_label}.force_cancel_run")

    def has_kill_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may kill runs that are still stopping."""
        return self.has_cancel_permission(request) and self.has_force_permission(request)

    def cancel_view(self, request: HttpRequest) -> HttpResponse:
        """Ask, and on POST cancel.

        Raises:
            PermissionDenied: The user may not cancel, or not look.
        """
        if not (self.has_view_permission(request) and self.has_cancel_permission(request)):
            raise PermissionDenied
        return self._ask_or_cancel(request, "cancel")

    def kill_view(self, request: HttpRequest) -> HttpResponse:
        """Ask, and on POST cancel by force: a run, or those of a cancellation that still stop.

        Raises:
            PermissionDenied: The user may not cancel, not by force, or not look.
        """
        if not (self.has_view_permission(request) and self.has_kill_permission(request)):
            raise PermissionDenied
        cancellation_id = request.GET.get("cancellation_id", "")
        if request.method == "POST" or not cancellation_id:
            return self._ask_or_cancel(request, "kill")
        run_ids = self._killable_of(request, cancellation_id)
        self._warn_of_others(request, run_ids)
        return self._ask(request, "kill", run_ids[:MAX_RUN_IDS], request.GET.get("next", ""))

    def _warn_of_others(self, request: HttpRequest, run_ids: list[str]) -> None:
        if len(run_ids) > MAX_RUN_IDS:
            text = _(
                "More than %(count)s runs of the cancellation can be killed. These are the first: "
                "kill the others afterwards, in the same way."
            )
            self.message_user(request, text % {"count": shown(MAX_RUN_IDS)}, messages.WARNING)

    def _killable_of(self, request: HttpRequest, cancellation_id: str) -> list[str]:
        """Return ids of runs of a cancellation that still stop, at most one more than a page takes.

        Without runs that have no executor, or whose executor is or was told to kill them: these
        would be the first ones again when the page is asked for the others.
        """
        if not is_storable(cancellation_id, MAX_RUN_ID_LENGTH):
            return []
        runs = self.get_queryset(request).filter(
            stop_state=StopState.STOPPING, cancellation__cancellation_id=cancellation_id
        )
        told = told_by_force().filter(
            run_id=OuterRef("run_id"), external_id=OuterRef("external_id")
        )
        runs = runs.exclude(backend="").exclude(external_id="").exclude(Exists(told))
        return list(runs.order_by("pk").values_list("run_id", flat=True)[: MAX_RUN_IDS + 1])

    def _ask_or_cancel(self, request: HttpRequest, page: Page) -> HttpResponse:
        if request.method != "POST":
            run_id = request.GET.get("run_id", "")
            back = request.GET.get("next") or (run_id and self.url_of_run(run_id))
            return self._ask(request, page, [run_id], back)
        form = self._form(request, page, request.POST)
        if not form.is_valid():
            return self._ask_again(request, page, form.cleaned_data.get("run_ids", []), form)
        run_ids = form.cleaned_data["run_ids"]
        try:
            result = cancel_runs(
                run_ids,
                runs=self.get_queryset(request),
                force=page == "kill" or form.cleaned_data.get("force", False),
                **self._request_fields(request, form),
            )
        except (IdempotencyKeyReused, OperationalError) as error:
            self._explain(request, form, error)
            return self._ask_again(request, page, run_ids, form)
        if not result.is_replay:
            self._log(request, result)
        landing = self._landing(request, page, form, result)
        self._tell(request, result, landing)
        return HttpResponseRedirect(landing)

    def _ask_again(
        self, request: HttpRequest, page: Page, run_ids: list[str], form: CancelForm
    ) -> HttpResponse:
        """Return the page with the errors of what was sent, and what it said before."""
        if cancellation_id := form.cleaned_data.get("cancellation_id"):
            self._warn_of_others(request, self._killable_of(request, cancellation_id))
        return self._ask(request, page, run_ids, "", form)

    def _request_fields(self, request: HttpRequest, form: Any) -> dict[str, Any]:
        return {
            "requested_by": request.user,
            "source": Source.ADMIN,
            "origin": Origin.of(request),
            "reason": form.cleaned_data["reason"],
            # The same page sent twice is one request.
            "idempotency_key": form.cleaned_data["token"],
        }

    def _explain(self, request: HttpRequest, form: Any, error: Exception) -> None:
        """Add to the form why nothing has been changed."""
        if isinstance(error, IdempotencyKeyReused):
            text = _("This page was sent before, with other entries. Nothing has been changed now.")
        elif connections[self.get_queryset(request).db].in_atomic_block:
            raise error  # of the host's transaction nothing can be saved
        else:
            text = _("The database is busy. Nothing has been changed: please send it again.")
        form.add_error("reason", text)

    def _form(self, request: HttpRequest, page: Page, *args: Any, **kwargs: Any) -> CancelForm:
        form = CancelForm(*args, **kwargs)
        if page == "kill" or not self.has_force_permission(request):
            del form.fields["force"]
        if page != "kill":
            del form.fields["cancellation_id"]
        return form

    def _next(self, request: HttpRequest, url: str) -> str:
        if url_has_allowed_host_and_scheme(url, None, require_https=request.is_secure()):
            return url
        return self._url("changelist")

    def _landing(
        self, request: HttpRequest, page: Page, form: CancelForm, result: CancelResult
    ) -> str:
        """Return the address of the page that shows what happens."""
        run_ids, back = form.cleaned_data["run_ids"], self._next(request, form.cleaned_data["next"])
        if len(run_ids) > 1:
            # Runs that are killed belong to the cancellation from whose page one comes.
            return (page == "cancel" and self.url_of_record(request, result.cancellation)) or back
        # The page of a row that refers to the run shows it too.
        is_ours = back.startswith(self._url("changelist"))
        is_found = any(item.previous_status for item in result.items)
        return self.url_of_run(*run_ids) if is_ours and is_found else back

    def url_of_record(self, request: HttpRequest, record: Cancellation | None) -> str:
        """Return the address of the page of a cancellation; blank for who may not read it."""
        if record is None or not request.user.has_perm("django_run_cancel.view_cancellation"):
            return ""
        try:
            name = f"admin:{RECORD_PAGE}"
            return reverse(name, args=[record.pk], current_app=self.admin_site.name)
        except NoReverseMatch:  # the host has not registered it
            return ""

    def _ask(
        self,
        request: HttpRequest,
        page: Page,
        run_ids: list[str],
        back: str,
        form: CancelForm | None = None,
    ) -> HttpResponse:
        """Return the page that says what would happen, and asks."""
        runs = self.get_queryset(request)
        user: Any = request.user  # not anonymous: it has a permission
        is_kill = page == "kill"
        plan = cancel_runs(run_ids, runs=runs, requested_by=user, force=is_kill, dry_run=True)
        initial = {"run_ids": run_ids, "token": uuid.uuid4().hex, "next": back}
        initial["cancellation_id"] = request.GET.get("cancellation_id", "")
        if form is not None:
            # The errors and what was entered stay; the token is new, so that it can be sent again.
            again = {"token": initial["token"], "run_ids": json.dumps(run_ids)}
            form.data = {**form.data.dict(), **again}  # type: ignore[attr-defined]
        context = {
            **self._plan(request, plan),
            "is_kill": is_kill,
            "form": form or self._form(request, page, initial=initial),
            "action": self._url(page),
            "back": self._next(request, form.data.get("next", "") if form else back),
        }
        sample = context["sample"]
        (run, item) = sample[0] if len(run_ids) == 1 and sample else (None, None)
        context |= {"run": run, "title": _title(is_kill, run)}
        if item is not None and run is None:
            context["title"] = _("Kill this run now?") if is_kill else _("Cancel this run?")
        return self._render(request, context)

    def _plan(self, request: HttpRequest, plan: CancelResult) -> dict[str, Any]:
        """Return what a page says about what would happen."""
        asked = [item for item in plan.items if item.via == Via.REQUESTED]
        asked.sort(key=lambda item: list(Outcome).index(item.outcome))
        below = [item for item in plan.items if item.via == Via.CASCADE]
        listed = [
            item.run_id for item in [*asked[:SAMPLE], *below[:SAMPLE]] if item.previous_status
        ]
        runs = self.get_queryset(request).filter(run_id__in=listed)
        by_id = {run.run_id: run for run in runs}
        counts = count_outcomes(plan)
        return {
            "forced": plan.forced,
            "counts": counts,
            "shown": {name: shown(count) for name, count in counts.items()},
            "max_tree": plan.postponed and shown(settings.MAX_TREE),
            "sample": [(by_id.get(item.run_id), item) for item in asked[:SAMPLE]],
            "more": len(asked) - SAMPLE,
            "more_shown": shown(len(asked) - SAMPLE),
            # Children go with their parents, but nobody is shown those of others.
            "below": [
                (by_id[item.run_id], item) for item in below[:SAMPLE] if item.run_id in by_id
            ],
            "more_below": len(below) - SAMPLE,
            "more_below_shown": shown(len(below) - SAMPLE),
        }

    def _render(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            **context,
        }
        warn_of_worker(self, request)
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/django_run_cancel/confirm.html", context)

    def _log(self, request: HttpRequest, result: CancelResult) -> None:
        """Write into the history of each run that was asked for and changed."""
        record: Any = result.cancellation  # there is one: the form has named runs
        asked = {item.run_id for item in result.items if item.via == Via.REQUESTED}
        runs = self.model._base_manager.filter(run_id__in=asked)
        about = {"cancellation": record}
        cancelled = _("Cancelled with %(cancellation)s.") % about
        forced = _("Force asked for with %(cancellation)s.") % about
        user: Any = request.user  # not anonymous
        try:
            with transaction.atomic(using=router.db_for_write(LogEntry)):
                for text, changed in (
                    (cancelled, runs.filter(cancellation=record)),
                    (forced, runs.filter(run_id__in=asked.intersection(result.forced))),
                ):
                    LogEntry.objects.log_actions(
                        user.pk, list(changed), CHANGE, f"{text} {record.reason}".strip()
                    )
        except DatabaseError as error:
            # Django's table may hold less text than ours, and the user may be gone by now. The
            # record says who it was, and why.
            shown = printable_lines(describe_error(error, 1_000))
            logger.warning("The admin's history of %s was not written: %s", record, shown)

    def _tell(self, request: HttpRequest, result: CancelResult, landing: str) -> None:
        """Say what happened, with a link to the record unless its page comes next."""
        counts = count_outcomes(result)
        record: Any = result.cancellation
        changed = self.model._base_manager.filter(cancellation=record)
        # Also those that waited for another attempt.
        counts["stopping"] = changed.filter(stop_state=StopState.STOPPING).count()
        url = self.url_of_record(request, record)
        see: Any = ""
        if url and url != landing:
            see = link(self.admin_site, _("What happened to each"), RECORD_PAGE, record.pk)
        for level, what, text in RESULTS:
            if counts[what]:
                said = text % {"count": shown(counts[what]), "number": counts[what]}
                self.message_user(request, format_html("{} {}", said, see), level)
                see = ""
        if result.postponed:
            follow = _("The runs below them follow: the delivery worker cancels them.")
            self.message_user(request, follow, messages.INFO)


def _title(is_kill: bool, run: Any) -> str:
    if run is None:
        return _("Kill these runs now?") if is_kill else _("Cancel these runs?")
    text = _("Kill “%(run)s” now?") if is_kill else _("Cancel “%(run)s”?")
    return text % {"run": run.title or run.run_id}


def count_outcomes(result: CancelResult) -> Counter[str]:
    """Count what happened; ``below`` and ``stopping`` are parts of all that was cancelled."""
    counts = Counter[str]()
    forced = set(result.forced)
    for item in result.items:
        if item.run_id in forced:
            counts["forced"] += 1
            continue
        below = item.via == Via.CASCADE
        counts["below" if below else item.outcome] += 1
        if item.outcome == Outcome.CANCELLED:
            counts["all"] += 1
            counts["stopping"] += item.previous_status not in WAITING
    return counts
