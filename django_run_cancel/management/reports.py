"""What ``cancel_runs`` did, or would do: counts, and the runs that are not cancelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from django.db import router
from django.db.models import Q, QuerySet

from django_run_cancel.cancellation.arguments import MAX_RUN_ID_LENGTH
from django_run_cancel.cancellation.bulk import Preview
from django_run_cancel.cancellation.progress import progress_of
from django_run_cancel.cancellation.records import recorded_id
from django_run_cancel.cancellation.results import CancelResult
from django_run_cancel.management.progress import in_words
from django_run_cancel.models import Cancellation, CancellationChunk, CancellationItem, run_rows
from django_run_cancel.models.ids import is_storable
from django_run_cancel.safe_text import printable
from django_run_cancel.states import (
    SUCCESSFUL,
    CancellationState,
    ChunkKind,
    ChunkState,
    Outcome,
    StopState,
    Via,
)

MAX_SHOWN = 20
"""Runs that are not cancelled, of which people are told."""

MAX_FAILED = 1_000
"""The same for programs, when runs were asked for by filter."""

MAX_SAMPLE = 5
"""Runs of a preview that people are shown."""

WORKERS = "the delivery workers (manage.py deliver_cancellations)"

REFUSED = "refused"
"""Said of a run that the database refuses to write, where there is no outcome."""


@dataclass
class Report:
    """What happened, or would happen.

    Attributes:
        total: Runs asked for.
        is_capped: Whether there are more.
        cancelled_count: Of these, runs that are cancelled now; None if it could not be read, like
            the numbers below.
        already_count: Of these, runs that were cancelled before.
        failed_count: Of those asked for, runs that are not cancelled.
        below: Descendants that went along, without those that were asked for as well.
        below_failed: Descendants that the database refuses to write.
        forced: Runs that were cancelled before and still stopped, told by force.
        sample: Titles of some of the runs by id, if this is a dry run of a filter.
        cancelled: Ids that are cancelled now, if runs were asked for by id.
        failed: Outcomes of those that are not, by id.
        record: The record; None if nothing was recorded.
    """

    total: int
    is_capped: bool = False
    cancelled_count: int | None = None
    already_count: int | None = None
    failed_count: int | None = None
    below: int | None = None
    below_failed: int | None = None
    forced: int | None = None
    sample: dict[str, str] | None = None
    cancelled: list[str] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    record: Cancellation | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = {**vars(self)}
        record = values.pop("record")
        for name in ("cancelled", "sample"):
            if values[name] is None:
                del values[name]
        values["cancellation"] = self.cancellation_id
        values["state"] = record and str(record.state)
        return values

    @property
    def cancellation_id(self) -> str | None:
        """Id of the record, if there is one."""
        return None if self.record is None else str(self.record.cancellation_id)

    @property
    def is_aborted(self) -> bool:
        """Whether the rest is not cancelled any more."""
        return self.record is not None and self.record.state == CancellationState.ABORTED

    def what_is_left(self) -> str:
        """Return in words what has not been done."""
        if self.cancelled_count is None:
            return f"{self.cancellation_id} is left to {WORKERS}."
        left = self.total - self.cancelled_count - (self.failed_count or 0)
        if self.is_aborted:
            return f"{left:,} of {runs_in_words(self.total)} stay as they are."
        if not left:
            return f"the runs below these are left to {WORKERS}."
        are = "is" if left == 1 else "are"
        return f"{left:,} of {runs_in_words(self.total)} {are} left to {WORKERS}."

    def what_has_failed(self) -> str:
        """Return in words what cannot be cancelled; blank if everything is."""
        if self.failed_count:
            are = "is" if self.failed_count == 1 else "are"
            text = f"{self.failed_count:,} of {runs_in_words(self.total)} {are} not cancelled."
        elif self.below_failed:
            text = f"{runs_in_words(self.below_failed)} below could not be changed."
        else:
            return ""
        if self.record is not None and self.record.state == CancellationState.FAILED:
            retry = f"manage.py retry_deliveries --cancellation {self.cancellation_id}"
            text += f" When the cause is gone, run: {retry}"
        return text

    def lines(self, *, is_dry_run: bool, is_left_to_workers: bool) -> Iterator[str]:
        """Yield in words what has been done, or would be."""
        yield from sample_lines(self.sample or {}, self.total)
        for run_id, outcome in islice(self.failed.items(), MAX_SHOWN):
            yield f"{printable(recorded_id(run_id))}: {outcome}"
        if (more := (self.failed_count or 0) - MAX_SHOWN) > 0:
            yield f"… and {more:,} more that are not cancelled"
        if is_left_to_workers:
            them = "it" if self.total == 1 else "them"
            yield (
                f"{runs_in_words(self.total)} and everything below {them} will be cancelled by "
                f"{WORKERS}."
            )
        elif self.cancelled_count is not None:
            yield from self._sums(self.cancelled_count, is_dry_run=is_dry_run)
        if self.record is not None:
            yield f"Cancellation: {self.record.cancellation_id}"

    def _sums(self, count: int, *, is_dry_run: bool) -> Iterator[str]:
        is_one = count == 1 and not self.is_capped
        are = "would be" if is_dry_run else "is" if is_one else "are"
        them = "it" if is_one else "them"
        if self.below is None:
            below = f", and everything below {them}" if count else ""
        else:
            below = f", and {self.below:,} below {them}" if self.below else ""
        yield f"{runs_in_words(count, is_capped=self.is_capped)} {are} cancelled{below}."
        if self.already_count:
            these = "It" if is_one else f"{self.already_count:,} of these"
            yield f"{these} had been cancelled before."
        if self.below_failed:
            yield f"{runs_in_words(self.below_failed)} below {them} could not be changed."
        if self.forced:
            will = "would" if is_dry_run else "will"
            one, many = "was still stopping and", "were still stopping and"
            yield (
                f"{runs_in_words(self.forced)} {one if self.forced == 1 else many} {will} be "
                f"killed, if {'its executor' if self.forced == 1 else 'their executors'} can."
            )


def runs_in_words(count: int, *, is_capped: bool = False) -> str:
    """Return a number of runs in words."""
    return f"{count:,}+ runs" if is_capped else in_words(count, "run", "runs")


def report_of(record: Cancellation, run_ids: list[str] | None) -> Report:
    """Return what a bulk cancellation has done so far.

    Args:
        record: The cancellation.
        run_ids: The ids that were asked for, if it was asked for ids.
    """
    record.refresh_from_db(using=router.db_for_write(Cancellation))
    progress = progress_of([record])[record.pk]
    # An earlier transaction of this cancellation may have cancelled them as descendants.
    again = _own_descendants(record).count() if progress.already_count else 0
    report = Report(
        total=record.total_count,
        cancelled_count=progress.cancelled_count,
        already_count=progress.already_count - again,
        failed_count=progress.failed_count,
        below=progress.cascaded_count - again,
        below_failed=_failed_chunks(record).exclude(kind=ChunkKind.REQUESTED).count(),
        forced=_forced(record).count() if record.force else 0,
        record=record,
    )
    if run_ids is None:
        if progress.failed_count:
            report.failed = dict(islice(_failures(record), MAX_FAILED))
        return report
    outcomes = {**dict(_refused(record)), **dict(_outcomes(record))}
    found = {run_id: outcomes.get(recorded_id(run_id)) for run_id in run_ids}
    report.cancelled = [run_id for run_id, outcome in found.items() if outcome in SUCCESSFUL]
    report.failed = {
        run_id: outcome
        for run_id, outcome in found.items()
        if outcome and outcome not in SUCCESSFUL
    }
    return report


def report_of_nothing(run_ids: list[str] | None) -> Report:
    """Return that there is nothing to cancel, and nothing is recorded."""
    return Report(
        total=0,
        cancelled_count=0,
        already_count=0,
        failed_count=0,
        below=0,
        below_failed=0,
        forced=0,
        cancelled=None if run_ids is None else [],
    )


def _items(record: Cancellation) -> QuerySet[CancellationItem]:
    return CancellationItem.objects.using(record._state.db).filter(cancellation=record)


def _failed_chunks(record: Cancellation) -> QuerySet[CancellationChunk]:
    chunks = CancellationChunk.objects.using(record._state.db)
    return chunks.filter(cancellation=record, state=ChunkState.FAILED)


def _refused(record: Cancellation, limit: int | None = None) -> Iterator[tuple[str, str]]:
    chunks = _failed_chunks(record).filter(kind=ChunkKind.REQUESTED).order_by("pk")
    for run_ids in chunks.values_list("run_ids", flat=True)[:limit]:
        yield from ((run_id, REFUSED) for run_id in run_ids)


def _outcomes(record: Cancellation) -> QuerySet[CancellationItem, tuple[str, str]]:
    """Return the ids and outcomes of the runs asked for that have been dealt with."""
    items = _items(record).filter(via=Via.REQUESTED).order_by("pk")
    return items.values_list("run_id", "outcome")


def _failures(record: Cancellation) -> Iterator[tuple[str, str]]:
    yield from _refused(record, MAX_FAILED)
    yield from _outcomes(record).exclude(outcome__in=SUCCESSFUL)[:MAX_FAILED]


def _own_descendants(record: Cancellation) -> QuerySet[Any]:
    already = _items(record).filter(via=Via.REQUESTED, outcome=Outcome.ALREADY_CANCELLED)
    return run_rows(cancellation=record, run_id__in=already.values("run_id"))


def _forced(record: Cancellation) -> QuerySet[Any]:
    already = _items(record).filter(outcome=Outcome.ALREADY_CANCELLED)
    stopped_since = Q(stop_state=StopState.STOPPING) | Q(stopped_at__gte=record.requested_at)
    before = run_rows(run_id__in=already.values("run_id")).exclude(cancellation=record)
    return before.filter(stopped_since).exclude(backend="").exclude(external_id="")


def report_of_dry_runs(results: Iterable[CancelResult]) -> Report:
    """Return what dry runs of the runs that were asked for by id say together."""
    cancelled: list[str] = []
    failed: dict[str, str] = {}
    below: set[str] = set()
    already, forced, postponed = 0, 0, False
    for result in results:
        cancelled += result.cancelled
        forced += len(result.forced)
        postponed = postponed or bool(result.postponed)
        for item in result.items:
            if item.via == Via.CASCADE and item.outcome == Outcome.CANCELLED:
                below.add(item.run_id)
            elif item.outcome not in SUCCESSFUL:
                failed[item.run_id] = item.outcome.value
            elif item.via == Via.REQUESTED:
                already += item.outcome == Outcome.ALREADY_CANCELLED
    return Report(
        total=len(cancelled) + len(failed),
        cancelled_count=len(cancelled),
        already_count=already,
        failed_count=len(failed),
        below=None if postponed else len(below.difference(cancelled)),
        forced=forced,
        cancelled=cancelled,
        failed=failed,
    )


def report_of_preview(preview: Preview) -> Report:
    """Return what the preview of a filter says; all that it matches would be cancelled."""
    report = report_of_dry_runs([preview.sample])
    is_complete = preview.count == report.total and not preview.is_capped
    return Report(
        total=preview.count,
        is_capped=preview.is_capped,
        cancelled_count=preview.count,
        already_count=0,
        failed_count=0,
        below=report.below if is_complete else None,
        forced=report.forced if is_complete else None,
        sample=titles_of(preview),
    )


def titles_of(preview: Preview) -> dict[str, str]:
    """Return the titles of the sample of a preview by id."""
    asked = [item.run_id for item in preview.sample.items if item.via == Via.REQUESTED]
    possible = [run_id for run_id in asked if is_storable(run_id, MAX_RUN_ID_LENGTH)]
    titles = dict(run_rows(run_id__in=possible).values_list("run_id", "title"))
    return {run_id: titles.get(run_id, "") for run_id in asked}


def sample_lines(titles: dict[str, str], total: int) -> Iterator[str]:
    """Yield the first runs of a preview in words."""
    for run_id, title in islice(titles.items(), MAX_SAMPLE):
        yield f"  {printable(recorded_id(run_id))}  {printable(title)}".rstrip()
    if titles and total > MAX_SAMPLE:
        yield "  …"
