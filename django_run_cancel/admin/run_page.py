"""The page of a run: its state, times, cancellation, parents and children, kept up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.contrib.admin.utils import quote
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_run_cancel.admin.announcements import StoppingMixin
from django_run_cancel.admin.base import MAX_COUNTED, link
from django_run_cancel.admin.columns import (
    age,
    clock,
    duration,
    heading,
    in_state_since,
    is_going_on,
    short_id,
    shown,
    state_badge,
)
from django_run_cancel.admin.live import REFRESH_SECONDS, LiveSummaryMixin
from django_run_cancel.conf import settings
from django_run_cancel.models import CancellationItem
from django_run_cancel.states import ACTIVE, Delivery, RunStatus, StopState

MAX_PARENTS = 5
"""Runs above a run that its page names."""

SHOWN_CHILDREN = 20
"""Children on the page of a run; a link leads to all of them."""

TIMES = (
    *("created_at", "queued_at", "dispatched_at", "started_at", "heartbeat_at"),
    *("finished_at", "stopped_at"),
)


class RunPageMixin(StoppingMixin, LiveSummaryMixin):
    """Adds the summary at the top of the page of a run."""

    summary_template = "admin/django_run_cancel/run_summary.html"

    if TYPE_CHECKING:

        def has_cancel_permission(self, request: HttpRequest, obj: Any = None) -> bool: ...

    def summary_of(self, request: HttpRequest, run: Any) -> dict[str, Any]:
        """Return what the summary says of a run."""
        return {
            "refresh_seconds": REFRESH_SECONDS if is_going_on(run) else None,
            "badge": state_badge(run),
            "since": _since(run),
            "facts": list(self._facts(request, run)),
            "times": list(_times(run)),
            "parents": self._parents(request, run),
            **self._children(request, run),
        }

    def _facts(self, request: HttpRequest, run: Any) -> Iterator[Any]:
        """Yield what else an operator has to know, in sentences."""
        if run.failure_reason:
            yield format_html(_("Reason: {reason}"), reason=run.failure_reason)
        if record := run.cancellation:
            text = _("Cancelled by {who}: {reason}")
            if not record.reason:
                text = _("Cancelled by {who}, without a reason.")
            by = format_html(text, who=record.requested_by, reason=record.reason)
            see = self._link_to_cancellation(request, run, "change", _("See the cancellation"))
            yield format_html("{} {}", by, see)
        is_stopping = run.stop_state == StopState.STOPPING
        if run.heartbeat_at and (is_stopping or run.status == RunStatus.RUNNING):
            text = _("Its code was last heard of {age} ago, at {time}.")
            yield format_html(text, age=age(run.heartbeat_at), time=clock(run.heartbeat_at))
        if run.status != RunStatus.CANCELLED:
            return
        items = CancellationItem.objects.filter(cancellation=run.cancellation_id)
        item = items.filter(run_id=run.run_id).last()
        if is_stopping:
            yield from _deadlines(run, item)
        if item is not None:
            again: Any = ""
            if item.delivery == Delivery.FAILED and self.has_cancel_permission(request):
                again = self._link_to_cancellation(request, run, "retry", _("Try again…"))
            yield format_html("{} {}", _told(item), again)

    def _link_to_cancellation(self, request: HttpRequest, run: Any, page: str, label: str) -> Any:
        if not request.user.has_perm("django_run_cancel.view_cancellation"):
            return ""
        name = f"django_run_cancel_cancellation_{page}"
        return link(self.admin_site, label, name, run.cancellation_id)

    def _parents(self, request: HttpRequest, run: Any) -> list[Any]:
        """Return links to the runs above that the user may see, from the top."""
        runs = self.get_queryset(request)
        above: list[Any] = []
        while run.parent_id and len(above) < MAX_PARENTS:
            run = runs.filter(pk=run.parent_id).first()
            if run is None:
                break
            above.insert(0, self._link(run))
        return above

    def _children(self, request: HttpRequest, run: Any) -> dict[str, Any]:
        """Return the first children, those first that are active, and how many there are."""
        runs = self.get_queryset(request)
        # Without an order, which would need all of any number of children.
        rows = runs.filter(parent=run.pk).order_by().values_list("pk", "status", "stop_state")
        found = sorted((_rank(status, stop), pk) for pk, status, stop in rows[: MAX_COUNTED + 1])
        first = [pk for _rank_of, pk in found[:SHOWN_CHILDREN]]
        by_pk = runs.in_bulk(first)
        list_name = self._name("changelist")
        return {
            "children": [
                {"link": self._link(child), "id": short_id(child.run_id), "run": child}
                | {"badge": state_badge(child), "age": age(child.created_at)}
                for child in (by_pk[pk] for pk in first if pk in by_pk)
            ],
            "children_counts": _counted(Counter(rank for rank, _pk in found)),
            "all_children": link(
                self.admin_site,
                _("All of them, in the list"),
                list_name,
                query=f"?parent__exact={quote(run.pk)}",
            ),
        }

    def _link(self, run: Any) -> Any:
        return link(self.admin_site, heading(run), self._name("change"), quote(run.pk))


def _rank(status: str, stop_state: str) -> int:
    if status in ACTIVE:
        return 0
    return 1 if stop_state == StopState.STOPPING else 2


def _counted(ranks: Counter[int]) -> str:
    """Return in words how many children there are, and in which states; blank without any."""
    total = ranks.total()
    if not total:
        return ""
    if total > MAX_COUNTED:
        text = _("More than %(count)s runs directly below.") % {"count": shown(MAX_COUNTED)}
        first = _("Of the first of these:")  # in no f-string: Babel does not look there
        return f"{text} {first} {_by_rank(ranks)}"
    text = ngettext("%(count)s run directly below:", "%(count)s runs directly below:", total)
    return f"{text % {'count': shown(total)}} {_by_rank(ranks)}"


def _by_rank(ranks: Counter[int]) -> str:
    texts = (_("%(count)s active"), _("%(count)s stopping"), _("%(count)s ended"))
    return ", ".join(
        text % {"count": shown(ranks[rank])} for rank, text in enumerate(texts) if ranks[rank]
    )


def _since(run: Any) -> Any:
    """Return for how long the run has been in its state, or when it came into a final one."""
    moment = in_state_since(run)
    if moment is None:  # a run that was created with a final status
        return ""
    about = {"age": age(moment), "time": clock(moment)}
    if is_going_on(run):
        return format_html(_("for {age}, since {time}"), **about)
    if run.stopped_at is not None and run.stop_state != StopState.NEVER_STARTED:
        text = _("{age} ago, at {time}, and {duration} after it was cancelled")
        return format_html(text, **about, duration=duration(moment - run.finished_at))
    return format_html(_("{age} ago, at {time}"), **about)


def _deadlines(run: Any, item: CancellationItem | None) -> Iterator[Any]:
    """Yield what happens to a run that is stopping unless something is heard of it before."""
    if item is not None and item.escalates_at is not None:
        yield _due(
            item.escalates_at,
            _("Will be killed at {time}, in {span}."),
            _("The delivery worker should have had it killed at {time}, {span} ago."),
        )
    presumed_at = run.finished_at + timedelta(seconds=settings.PRESUME_SECONDS)
    yield _due(
        presumed_at,
        _("Will be presumed stopped at {time}, in {span}, unless its end is reported before."),
        _("The delivery worker should have presumed it stopped at {time}, {span} ago."),
    )


def _due(moment: datetime, ahead: str, overdue: str) -> Any:
    span = moment - timezone.now()
    text = ahead if span > timedelta() else overdue
    return format_html(text, time=clock(moment), span=duration(abs(span)))


def _told(item: CancellationItem) -> Any:
    """Return whether the executor of a run knows that it is cancelled."""
    if item.delivery == Delivery.NOT_NEEDED:
        return _("No executor had to be told.")
    if item.delivery == Delivery.DELIVERED:
        return _("Its executor has been told.")
    if item.delivery == Delivery.FAILED:
        text = _("Its executor could not be told, and that is not tried again: {error}")
    elif item.last_error:
        text = _("Its executor could not be told yet, and that is tried again: {error}")
    else:
        return _("Its executor has yet to be told.")
    return format_html(text, error=item.last_error)


def _times(run: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the times that are known of the run, each with its name."""
    for name in TIMES:
        if moment := getattr(run, name):
            label = run._meta.get_field(name).verbose_name
            if name == "finished_at" and run.status == RunStatus.CANCELLED:
                label = _("cancelled at")  # its code may not have finished
            yield label, clock(moment)
