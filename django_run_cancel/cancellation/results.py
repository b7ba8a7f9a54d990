"""What ``cancel_runs`` returns, for a new request and for one that is repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from django_run_cancel.cancellation.decision import Item
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.models import Cancellation, CancellationItem
from django_run_cancel.states import SUCCESSFUL, Outcome, Via

if TYPE_CHECKING:
    from django_run_cancel.db.locks import LockedRun


@dataclass(frozen=True)
class CancelResult:
    """What ``cancel_runs`` did, or in a dry run would do.

    Attributes:
        cancellation: The record; None after a dry run, and when no id was given.
        cancelled: Ids that were asked for and are cancelled now, in the order asked.
        failed: Ids that were asked for and are not: finished, unknown or out of reach.
        items: What happened to each run, children included.
        forced: Ids of runs that were cancelled before and still stopped, whose executors are told
            by force, children included. Empty in a replay.
        postponed: Ids of runs with more descendants below them than ``RUN_CANCEL_MAX_TREE``: the
            delivery worker cancels these. None of them is in ``items``. Empty in a replay.
        is_replay: Whether this is the answer of an earlier call with the same idempotency key.
    """

    cancellation: Cancellation | None
    cancelled: list[str]
    failed: list[str]
    items: Sequence[Item]
    forced: list[str] = field(default_factory=list, compare=False)
    postponed: list[str] = field(default_factory=list, compare=False)
    is_replay: bool = field(default=False, compare=False)


def result_of(
    record: Cancellation | None,
    items: list[Item],
    forced: Sequence[LockedRun] = (),
    postponed: Sequence[LockedRun] = (),
) -> CancelResult:
    requested = [item for item in items if item.via == Via.REQUESTED]
    return CancelResult(
        cancellation=record,
        cancelled=[item.run_id for item in requested if item.outcome in SUCCESSFUL],
        failed=[item.run_id for item in requested if item.outcome not in SUCCESSFUL],
        items=items,
        forced=[row.run_id for row in forced],
        postponed=[row.run_id for row in postponed],
    )


def replay(record: Cancellation, asked: list[str], fields: dict[str, Any]) -> CancelResult:
    """Return what the first request with this key was answered."""
    if record.request_digest != fields["request_digest"]:
        raise IdempotencyKeyReused(fields["idempotency_key"])
    # Exactly the ids asked for: the record may hold some of them escaped.
    exact = iter(asked)
    items = []
    rows = CancellationItem.objects.using(record._state.db).filter(cancellation=record)
    for row in rows.order_by("pk"):
        run_id = next(exact) if row.via == Via.REQUESTED else row.run_id
        items.append(Item(run_id, Outcome(row.outcome), Via(row.via), row.previous_status))
    return replace(result_of(record, items), is_replay=True)
