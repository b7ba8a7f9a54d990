"""``CancelResult``: the result of ``cancel_runs``, for a new request and for a replayed one."""

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
    """Result of ``cancel_runs``; of a dry run, what it would have done.

    Attributes:
        cancellation: The Cancellation in the database; None after a dry run or without any ids.
        cancelled: Requested ids of runs that are cancelled now, in the requested order.
        failed: Requested ids of runs that are not: finished, unknown, or not accessible.
        items: Outcome of each run, including descendants.
        forced: Ids of runs, including descendants, that were cancelled before and were still
            stopping; their executors get a stop request with force. Empty in a replay.
        postponed: If all requested runs together have more descendants than
            ``RUN_CANCEL_MAX_TREE``, the ids of those that are cancelled. The delivery worker
            cancels these descendants, which are not in ``items``. Empty in a replay.
        is_replay: Whether this is the result of an earlier call with the same idempotency key.
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
    """Return the result of the first request with this idempotency key."""
    if record.request_digest != fields["request_digest"]:
        raise IdempotencyKeyReused(fields["idempotency_key"])
    # Use the requested ids, as items store invalid ones escaped.
    requested_ids = iter(asked)
    items = []
    rows = CancellationItem.objects.using(record._state.db).filter(cancellation=record)
    for row in rows.order_by("pk"):
        run_id = next(requested_ids) if row.via == Via.REQUESTED else row.run_id
        items.append(Item(run_id, Outcome(row.outcome), Via(row.via), row.previous_status))
    return replace(result_of(record, items), is_replay=True)
