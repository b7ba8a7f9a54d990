"""What the page of a cancellation says at the top: state, who and why, totals, progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.utils import formats, timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_run_cancel.admin.base import MAX_COUNTED
from django_run_cancel.admin.columns import age, clock, duration, shown
from django_run_cancel.admin.selection_words import describe
from django_run_cancel.cancellation.progress import Progress, progress_of
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from django_run_cancel.states import (
    UNSETTLED,
    CancellationState,
    ChunkKind,
    ChunkState,
    Delivery,
    StopState,
)

ENDED = (StopState.ACKNOWLEDGED, StopState.KILLED, StopState.PRESUMED)


@dataclass(frozen=True)
class Overview:
    """How far a cancellation is, and what has become of the code.

    Attributes:
        record: The cancellation.
        progress: Counts of the runs.
        stops: Numbers of its runs by how their code ended, none above ``MAX_COUNTED`` + 1.
        failed_deliveries: Executors that could not be told, none above ``MAX_COUNTED`` + 1.
        failed_handlings: The same of handlers.
        failed_chunks: Parts that could not be written.
        can_abort: Whether runs that were asked for are left.
        is_going_on: Whether delivery workers still cancel runs of it.
        last_error: Why a part could not be written, or is tried again.
    """

    record: Cancellation
    progress: Progress
    stops: Counter[str]
    failed_deliveries: int
    failed_handlings: int
    failed_chunks: int
    can_abort: bool
    is_going_on: bool
    last_error: str

    @property
    def stopped(self) -> int:
        """Runs whose code had started, and has ended."""
        return sum(self.stops[state] for state in ENDED)

    @property
    def can_retry(self) -> bool:
        """Whether something has failed that can be tried again."""
        return bool(self.failed_deliveries or self.failed_handlings or self.failed_chunks)

    @property
    def is_large(self) -> bool:
        """Whether there are more runs than are counted."""
        return self.stops.total() > MAX_COUNTED

    @property
    def is_live(self) -> bool:
        """Whether the page has to be brought up to date."""
        return self.is_going_on or bool(self.stops[StopState.STOPPING])


def overview_of(record: Cancellation) -> Overview:
    """Return how far a cancellation is; nothing is counted beyond ``MAX_COUNTED``."""
    chunks = CancellationChunk.objects.filter(cancellation=record)
    pending = chunks.filter(state=ChunkState.PENDING)
    items = CancellationItem.objects.filter(cancellation=record)
    errors = chunks.exclude(last_error="").order_by("-pk").values_list("last_error", flat=True)
    return Overview(
        record=record,
        progress=progress_of([record])[record.pk],
        stops=_count_stops(record),
        failed_deliveries=_bounded(items.filter(delivery=Delivery.FAILED)),
        failed_handlings=_bounded(items.filter(handling=Delivery.FAILED)),
        failed_chunks=chunks.filter(state=ChunkState.FAILED)[: MAX_COUNTED + 1].count(),
        can_abort=pending.filter(kind=ChunkKind.REQUESTED).exists(),
        is_going_on=record.state in UNSETTLED or pending.exists(),
        last_error=errors.first() or "",
    )


def _count_stops(record: Cancellation) -> Counter[str]:
    runs = get_run_model()._base_manager.filter(cancellation=record).order_by()
    counts = Counter(runs.values_list("stop_state", flat=True)[: MAX_COUNTED + 1])
    if counts.total() > MAX_COUNTED:
        return Counter(
            {state: _bounded(runs.filter(stop_state=state)) for state in StopState.values}
        )
    return counts


def _bounded(rows: QuerySet[Any]) -> int:
    return rows.order_by()[: MAX_COUNTED + 1].count()


def badge(overview: Overview) -> Any:
    """Return the state in words, on a ground whose colour goes with it."""
    is_stopping = bool(overview.stops[StopState.STOPPING])
    return badge_of(overview.record, overview.progress, is_stopping=is_stopping)


def badge_of(record: Cancellation, progress: Progress, *, is_stopping: bool) -> Any:
    """Return the same, where it is known whether a run of the cancellation is stopping."""
    kind, text = _state(record, progress, is_stopping)
    return format_html('<span class="run-cancel-state run-cancel-state-{}">{}</span>', kind, text)


def _state(record: Cancellation, progress: Progress, is_stopping: bool) -> tuple[str, str]:
    if record.state == CancellationState.PENDING:
        return "waiting", _("waiting for the delivery worker")
    if record.state == CancellationState.RUNNING:
        return "running", _("runs are being cancelled")
    if record.state == CancellationState.ABORTED:
        return "failed", _("aborted: not all runs were cancelled")
    if record.state == CancellationState.FAILED:
        return "failed", _("some runs could not be cancelled")
    if is_stopping:
        return "stopping", _("cancelled, some runs are stopping")
    # Runs that were cancelled before may be stopping, as those of another cancellation.
    if progress.cancelled_count > progress.already_count or progress.cascaded_count:
        return "completed", _("cancelled, no run is stopping")
    return "waiting", _("no run was cancelled")


def since(record: Cancellation) -> Any:
    """Return when the cancellation was asked for, and when it ended if that was later."""
    text = _("asked for {age} ago, at {time}")
    asked = format_html(text, age=age(record.requested_at), time=clock(record.requested_at))
    if record.selection is None or record.finished_at is None:
        return asked
    ended = format_html(_("ended at {time}"), time=clock(record.finished_at))
    return format_html("{}, {}", asked, ended)


def facts(overview: Overview) -> Iterator[Any]:
    """Yield what else an operator has to know, in sentences."""
    record = overview.record
    text = _("Asked for by {who} ({source}): {reason}")
    if not record.reason:
        text = _("Asked for by {who} ({source}), without a reason.")
    who, source = record.requested_by, record.get_source_display()
    yield format_html(text, who=who, source=source, reason=record.reason)
    if record.force:
        yield _("By force: what had started is killed at once, where its executor can.")
    if record.selection is not None:
        yield format_html(_("Selected: {runs}"), runs=_selected(record.selection))
    if overview.last_error:
        yield format_html(_("Could not be written: {error}"), error=overview.last_error)


def _selected(selection: Any) -> str:
    count = selection.get("run_ids")
    if isinstance(count, int):
        text = ngettext("%(count)s run by its id", "%(count)s runs by their ids", count)
        return text % {"count": shown(count)}
    filters = selection.get("filter")
    if not filters or not isinstance(filters, dict):
        return _("all active runs")
    return describe(filters)


def totals(overview: Overview) -> Iterator[tuple[str, str]]:
    """Yield what is counted, each with its name."""
    progress, stops = overview.progress, overview.stops
    yield _("asked for"), shown(progress.total_count)
    yield _("cancelled"), shown(progress.cancelled_count - progress.already_count)
    yield _("below, cancelled too"), shown(progress.cascaded_count)
    yield _("never started"), shown(stops[StopState.NEVER_STARTED], MAX_COUNTED)
    yield _("stopping"), shown(stops[StopState.STOPPING], MAX_COUNTED)
    yield _("stopped"), shown(overview.stopped, MAX_COUNTED)
    yield _("cancelled before"), shown(progress.already_count)
    yield _("not cancelled"), shown(progress.failed_count)
    yield _("failed deliveries"), shown(overview.failed_deliveries, MAX_COUNTED)
    if overview.failed_handlings:
        yield _("failed handlers"), shown(overview.failed_handlings, MAX_COUNTED)


def bar(overview: Overview) -> dict[str, Any] | None:
    """Return how far a bulk cancellation is, for a progress bar; None for others."""
    record, progress = overview.record, overview.progress
    if record.selection is None or not progress.total_count:
        return None
    text = _("%(done)s of %(total)s runs (%(percent)d%%)") % {
        "done": shown(progress.processed_count),
        "total": shown(progress.total_count),
        "percent": 100 * progress.processed_count // progress.total_count,
    }
    parts = [text]
    if progress.rate is not None:
        parts.append(_("%(rate)s a second") % {"rate": _rate(progress.rate)})
    # An end that has passed was wrong: nothing has gone on since.
    if progress.estimated_end is not None and progress.estimated_end > timezone.now():
        parts.append(_remaining(progress.estimated_end))
    return {
        "total": progress.total_count,
        "done": progress.processed_count,
        "text": format_html("{}", ", ".join(parts)),
    }


def _rate(rate: float) -> str:
    return formats.number_format(rate, 0 if rate >= 10 else 1, force_grouping=True)


def _remaining(end: datetime) -> str:
    local = timezone.localtime(end)
    about = {"span": duration(end - timezone.now()), "time": f"{local:%H:%M:%S}"}
    return _("about %(span)s left, until %(time)s") % about
