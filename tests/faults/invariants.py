"""Checks of the rows: what must hold of runs, records and items at every moment, whatever happened.

Each function yields a sentence for each thing that is wrong. None of them calls the package: they
only compare rows with each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)

WAITING = {"created", "queued"}
ACTIVE = {*WAITING, "running", "paused"}
FINISHED = {"completed", "failed", "terminated", "timed_out"}
STOPPED = {"never_started", "acknowledged", "killed", "presumed"}

COUNTS = ("cancelled_count", "already_count", "failed_count", "cascaded_count")


class Rows:
    """All rows, read once."""

    def __init__(self) -> None:
        runs = list(get_run_model()._base_manager.all())
        self.runs = {run.run_id: run for run in runs}
        self.by_pk = {run.pk: run for run in runs}
        self.records = {record.pk: record for record in Cancellation.objects.all()}
        self.chunks = list(CancellationChunk.objects.all())
        self.items = list(CancellationItem.objects.all())
        self.cancelled_by = defaultdict(list)
        for item in self.items:
            if item.outcome == "cancelled":
                self.cancelled_by[item.run_id].append(item)

    def above(self, run: Any) -> Iterator[Any]:
        """Yield the runs above a run, the nearest first."""
        while run.parent_id is not None:
            run = self.by_pk[run.parent_id]
            yield run


def assert_rows_sound(*, everything_done: bool = False) -> None:
    """Check all rows.

    Args:
        everything_done: Whether the delivery worker has had nothing left to do.
    """
    rows = Rows()
    wrong = [
        *one_writer(rows),
        *all_or_nothing(rows),
        *true_outcomes(rows),
        *terminal_is_final(rows),
        *cascade(rows),
        *outbox(rows),
        *evidence(rows),
        *(nothing_left(rows) if everything_done else ()),
    ]
    assert not wrong, "\n".join(wrong)


def one_writer(rows: Rows) -> Iterator[str]:
    """A run is cancelled exactly if one item of one record says that this record cancelled it."""
    for run in rows.runs.values():
        by = rows.cancelled_by[run.run_id]
        if run.status != "cancelled":
            if by or run.cancellation_id:
                yield f"{run.run_id} is {run.status}, and was cancelled by {by}"
        elif [item.cancellation_id for item in by] != [run.cancellation_id]:
            yield f"{run.run_id} refers to {run.cancellation_id}, and was cancelled by {by}"


def all_or_nothing(rows: Rows) -> Iterator[str]:
    """The counts of a record, with those of its chunks, are those of its items."""
    counted: dict[int, Counter[str]] = defaultdict(Counter)
    for item in rows.items:
        counted[item.cancellation_id][f"{item.via} {item.outcome}"] += 1
    for pk, record in rows.records.items():
        found, chunks = counted[pk], [each for each in rows.chunks if each.cancellation_id == pk]
        said = [
            getattr(record, name) + sum(getattr(each, name) for each in chunks) for name in COUNTS
        ]
        already = found["requested already_cancelled"]
        failed = found["requested already_finished"] + found["requested not_found"]
        true = [
            found["requested cancelled"] + already,
            already,
            failed + sum(each.failed_count for each in chunks if each.state == "failed"),
            found["cascade cancelled"],
        ]
        if said != true:
            yield f"{record} counts {said}, and has items for {true}"
        requested = true[0] + true[2]
        if requested > record.total_count or (
            record.state == "completed" and requested != record.total_count
        ):
            yield f"{record} is {record.state}, was asked for {record.total_count}: {requested}"
        if record.state in {"completed", "failed"} and any(
            each.state == "pending" for each in chunks
        ):
            yield f"{record} is {record.state}, and something is left to do"


def true_outcomes(rows: Rows) -> Iterator[str]:
    """Each item tells the truth about its run."""
    before = {
        "cancelled": ACTIVE,
        "already_cancelled": {"cancelled"},
        "already_finished": FINISHED,
        "not_found": {""},
    }
    for item in rows.items:
        if item.previous_status not in before[item.outcome]:
            yield f"{item} was {item.previous_status}"
        run = rows.runs.get(item.run_id)
        if run is None:
            continue
        if item.outcome == "already_cancelled" and run.status != "cancelled":
            yield f"{item}, but it is {run.status}"
        if item.outcome == "already_finished" and run.status != item.previous_status:
            yield f"{item} as {item.previous_status}, but it is {run.status}"


def terminal_is_final(rows: Rows) -> Iterator[str]:
    """A run has a time of its end exactly if it has ended."""
    for run in rows.runs.values():
        if (run.status in ACTIVE) != (run.finished_at is None):
            yield f"{run.run_id} is {run.status}, and ended at {run.finished_at}"


def cascade(rows: Rows) -> Iterator[str]:
    """Nothing below a cancelled run is active, unless a chunk says that it is still to be found."""
    postponed = {
        each.cancellation_id
        for each in rows.chunks
        if each.state == "pending" and each.kind in {"children", "cascade"}
    }
    for run in rows.runs.values():
        for above in rows.above(run) if run.status in ACTIVE else ():
            if above.status == "cancelled" and not postponed:
                yield f"{run.run_id} is {run.status} below {above.run_id}, which is cancelled"


def outbox(rows: Rows) -> Iterator[str]:
    """Of each cancelled run that an executor has, it is told; and what waits has a time."""
    for item in rows.items:
        has_executor = bool(item.backend and item.external_id)
        if item.outcome == "cancelled" and has_executor == (item.delivery == "not_needed"):
            yield f"{item} at {item.external_id!r} has the delivery {item.delivery}"
        if (item.delivery == "pending") != (item.next_attempt_at is not None):
            yield f"{item} is {item.delivery}, due at {item.next_attempt_at}"
        if (item.handling == "pending") != (item.next_handling_at is not None):
            yield f"{item} is handled {item.handling}, due at {item.next_handling_at}"
        if item.delivery != "pending" and item.claimed_by is not None:
            yield f"{item} is {item.delivery} and claimed"
        if item.handling != "not_needed" and item.outcome != "cancelled":
            yield f"{item} is handled {item.handling}"


def evidence(rows: Rows) -> Iterator[str]:
    """Of cancelled runs, and of no others, it is known how they ended, or that they go on."""
    for run in rows.runs.values():
        if run.status != "cancelled":
            if run.stop_state or run.stopped_at:
                yield f"{run.run_id} is {run.status}, and {run.stop_state}"
            continue
        if run.stop_state not in {"stopping", *STOPPED}:
            yield f"{run.run_id} is cancelled, and {run.stop_state!r}"
        if (run.stop_state == "stopping") != (run.stopped_at is None):
            yield f"{run.run_id} is {run.stop_state}, since {run.stopped_at}"
        for item in rows.cancelled_by[run.run_id]:
            never_started = item.previous_status in WAITING and run.started_at is None
            if never_started != (run.stop_state == "never_started"):
                yield f"{run.run_id} was {item.previous_status}, and is {run.stop_state}"


def nothing_left(rows: Rows) -> Iterator[str]:
    """Everything has been delivered, handled and advanced."""
    for item in rows.items:
        if item.delivery in {"pending", "failed"} or item.handling in {"pending", "failed"}:
            yield f"{item} is left: {item.delivery}, {item.handling}"
    for record in rows.records.values():
        if record.state in {"pending", "running"}:
            yield f"{record} is left: {record.state}"
