"""The page of a run: its state, times, cancellation, parents and children, kept up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.utils import quote
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_run_cancel.admin.base import MAX_COUNTED, link
from django_run_cancel.admin.columns import age, clock, duration, heading, short_id, state_badge
from django_run_cancel.admin.live import REFRESH_SECONDS, LiveSummaryMixin
from django_run_cancel.conf import settings
from django_run_cancel.models import CancellationItem
from django_run_cancel.states import ACTIVE, WAITING, RunStatus, StopState

MAX_PARENTS = 5
"""Runs above a run that its page names."""

SHOWN_CHILDREN = 20
"""Children on the page of a run; a link leads to all of them."""

TIMES = (
    *("created_at", "queued_at", "dispatched_at", "started_at", "heartbeat_at"),
    *("finished_at", "stopped_at"),
)


class RunPageMixin(LiveSummaryMixin):
    """Adds the summary at the top of the page of a run."""

    summary_template = "admin/django_run_cancel/run_summary.html"

    def summary_of(self, request: HttpRequest, run: Any) -> dict[str, Any]:
        """Return what the summary says of a run."""
        is_live = run.status in ACTIVE or run.stop_state == StopState.STOPPING
        return {
            "refresh_seconds": REFRESH_SECONDS if is_live else None,
            "badge": state_badge(run),
            "since": _since(run),
            "facts": list(_facts(run, self._record(request, run))),
            "times": list(_times(run)),
            "parents": self._parents(request, run),
            **self._children(request, run),
        }

    def _record(self, request: HttpRequest, run: Any) -> Any:
        if not (
            run.cancellation_id and request.user.has_perm("django_run_cancel.view_cancellation")
        ):
            return ""
        name = "django_run_cancel_cancellation_change"
        return link(self.admin_site, _("See the record"), name, run.cancellation_id)

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
        shown = [pk for _rank_of, pk in found[:SHOWN_CHILDREN]]
        by_pk = runs.in_bulk(shown)
        list_name = self._name("changelist")
        return {
            "children": [
                {"link": self._link(child), "id": short_id(child.run_id), "run": child}
                | {"badge": state_badge(child), "age": age(child.created_at)}
                for child in (by_pk[pk] for pk in shown if pk in by_pk)
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
        text = _("More than %(count)d runs directly below.") % {"count": MAX_COUNTED}
        first = _("Of the first of these:")  # in no f-string: Babel does not look there
        return f"{text} {first} {_by_rank(ranks)}"
    text = ngettext("%(count)d run directly below:", "%(count)d runs directly below:", total)
    return f"{text % {'count': total}} {_by_rank(ranks)}"


def _by_rank(ranks: Counter[int]) -> str:
    texts = (_("%(count)d active"), _("%(count)d stopping"), _("%(count)d ended"))
    return ", ".join(
        text % {"count": ranks[rank]} for rank, text in enumerate(texts) if ranks[rank]
    )


def _since(run: Any) -> Any:
    """Return for how long the run has been in its state, or when it has left it."""
    if run.status == RunStatus.CANCELLED:
        return _since_cancelled(run)
    if run.status in WAITING:
        return _for_and_since(run.queued_at or run.created_at)
    if run.status in ACTIVE:
        return _for_and_since(run.started_at or run.created_at)
    return _ago(run.finished_at)


def _since_cancelled(run: Any) -> Any:
    if run.stop_state == StopState.STOPPING:
        return _for_and_since(run.finished_at)
    if run.stop_state == StopState.NEVER_STARTED or run.stopped_at is None:
        return _ago(run.finished_at)
    text = _("{age} ago, at {time}, and {duration} after it was cancelled")
    after = duration(run.stopped_at - run.finished_at)
    return format_html(text, age=age(run.stopped_at), time=clock(run.stopped_at), duration=after)


def _for_and_since(moment: datetime) -> Any:
    return format_html(_("for {age}, since {time}"), age=age(moment), time=clock(moment))


def _ago(moment: datetime | None) -> Any:
    if moment is None:  # a run that was created with a final status
        return ""
    return format_html(_("{age} ago, at {time}"), age=age(moment), time=clock(moment))


def _facts(run: Any, record_link: Any) -> Iterator[Any]:
    """Yield what else an operator has to know, in sentences."""
    if run.failure_reason:
        yield format_html(_("Reason: {reason}"), reason=run.failure_reason)
    if run.status != RunStatus.CANCELLED:
        return
    if record := run.cancellation:
        text = _("Cancelled by {who}: {reason}")
        if not record.reason:
            text = _("Cancelled by {who}, without a reason.")
        by = format_html(text, who=record.requested_by, reason=record.reason)
        yield format_html("{} {}", by, record_link)
    item = CancellationItem.objects.filter(
        cancellation=run.cancellation_id, run_id=run.run_id
    ).last()
    if run.stop_state == StopState.STOPPING:
        yield from _deadlines(run, item)
    if item is not None:
        told = format_html(_("Executor told: {state}"), state=item.get_delivery_display())
        yield format_html("{}. {}", told, item.last_error) if item.last_error else told


def _deadlines(run: Any, item: CancellationItem | None) -> Iterator[Any]:
    """Yield what happens to a run that is stopping unless something is heard of it before."""
    if item is not None and item.escalates_at is not None:
        yield _due(
            item.escalates_at,
            _("Will be killed at {time}, in {span}."),
            _("Was to be killed at {time}, {span} ago."),
        )
    presumed_at = run.finished_at + timedelta(seconds=settings.PRESUME_SECONDS)
    yield _due(
        presumed_at,
        _("Presumed stopped at {time}, in {span}, unless it is heard of before."),
        _("Was to be presumed stopped at {time}, {span} ago."),
    )


def _due(moment: datetime, ahead: str, overdue: str) -> Any:
    span = moment - timezone.now()
    text = ahead if span > timedelta() else overdue
    return format_html(text, time=clock(moment), span=duration(abs(span)))


def _times(run: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the times that are known of the run, each with its name."""
    for name in TIMES:
        if moment := getattr(run, name):
            yield run._meta.get_field(name).verbose_name, clock(moment)
