"""``deliver_due()``: one step of the delivery worker, and telling executors to stop runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django_run_cancel.backends import get_backend
from django_run_cancel.backends.base import BackendError, BaseBackend, StopOutcome, StopRequest
from django_run_cancel.cancellation.chunks import advance_bulk_cancellations
from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.conf import settings
from django_run_cancel.db.clock import database_now
from django_run_cancel.delivery import outbox, watchdog
from django_run_cancel.delivery.dispatcher import redispatch
from django_run_cancel.delivery.handlers import handle_due
from django_run_cancel.delivery.outbox import DELIVERY, Claim
from django_run_cancel.delivery.policy import Limits, Told, escalation, next_step
from django_run_cancel.models import CancellationItem, run_rows
from django_run_cancel.states import (
    HANDED_BACK,
    WAITING,
    Delivery,
    Outcome,
    RunStatus,
    StopState,
)

ABANDONED_SECONDS = 5.0
"""After which no further abandoned item is begun in one step."""

BULK_SECONDS = 1.0
"""For which bulk cancellations are advanced in one step, before executors are told."""

Result = StopOutcome | BaseException


@dataclass
class DeliveryReport:
    """What one step of the delivery worker did.

    Attributes:
        delivered: Items of which the executor has been told, or need not be.
        repeated: Items that were told, and will be again because nobody may have heard.
        failed: Attempts that failed, of deliveries and handlers.
        handled: Items that all handlers were called for.
        escalated: Items that are told again by force.
        dispatched: Runs that were handed to their executor again.
        presumed: Runs that are presumed to have stopped.
        stalled: Runs that were set to timed out.
        advanced: Runs of bulk cancellations that were dealt with.
    """

    delivered: int = 0
    repeated: int = 0
    failed: int = 0
    handled: int = 0
    escalated: int = 0
    dispatched: int = 0
    presumed: int = 0
    stalled: int = 0
    advanced: int = 0

    def __bool__(self) -> bool:
        """Tell whether anything was done, so that there may be more."""
        return any(asdict(self).values())


class _Run(NamedTuple):
    """What is read of the run of an item."""

    run_id: str
    stop_state: str
    finished_at: datetime | None
    execution_id: UUID | None


def deliver_due(limit: int = 100) -> DeliveryReport:
    """Do once all that is due: what ``deliver_cancellations`` does in a loop.

    Any number of processes may call this at once. Not inside a transaction: executors are called.

    Args:
        limit: How many items of each backend, and how many items and runs of each other kind.
    """
    report = DeliveryReport()
    report.advanced = advance_bulk_cancellations(BULK_SECONDS)
    report.escalated = watchdog.escalate(limit)
    # Each backend for itself: one that is away does not starve the others.
    for alias in outbox.aliases_with_due_items():
        if claim := outbox.claim_due(DELIVERY, limit, backend=alias):
            _deliver(claim, report)
    until = time.monotonic() + ABANDONED_SECONDS
    for _ in range(limit):
        abandoned = outbox.claim_abandoned(DELIVERY)
        if abandoned is None or time.monotonic() > until:
            break
        _deliver(abandoned, report)
    handled, failed = handle_due(limit)
    report.handled += handled
    report.failed += failed
    report.dispatched = redispatch(limit)
    report.presumed = watchdog.look_for_silent(limit)
    report.stalled = watchdog.look_for_stalled(limit)
    return report


def _deliver(claim: Claim, report: DeliveryReport) -> None:
    """Tell the one backend of these items, and record what came of it."""
    if not claim.items:
        return
    found = run_rows(run_id__in=[item.run_id for item in claim.items])
    runs = {row[0]: _Run._make(row) for row in found.values_list(*_Run._fields)}
    values: dict[int, Mapping[str, Any]] = {}
    to_tell = []
    _set_status_before(claim.items)
    for item in claim.items:
        run = runs.get(item.run_id)
        if run and run.stop_state in {StopState.ACKNOWLEDGED, StopState.KILLED}:
            values[item.pk] = {**_DELIVERED, "last_error": ""}  # there is nothing left to stop
        else:
            to_tell.append(item)
    if to_tell:
        values |= _tell(claim, to_tell, runs, report)
    outbox.record(claim, values)
    report.delivered += sum(each["delivery"] == Delivery.DELIVERED for each in values.values())


def _set_status_before(told: list[CancellationItem]) -> None:
    """Set on items of requests that came later the status that the run had when it was cancelled.

    It says whether an answer is evidence; of a run whose item is deleted, none is.
    """
    later = {item.run_id: item for item in told if item.outcome == Outcome.ALREADY_CANCELLED}
    if not later:
        return
    first = outbox.items().filter(run_id__in=list(later), outcome=Outcome.CANCELLED)
    before = dict(first.order_by("pk").values_list("run_id", "previous_status"))
    for run_id, item in later.items():
        item.previous_status = before.get(run_id, RunStatus.QUEUED)


_DELIVERED = {"delivery": Delivery.DELIVERED, "next_attempt_at": None, "escalates_at": None}


def _tell(
    claim: Claim,
    items: list[CancellationItem],
    runs: Mapping[str, _Run],
    report: DeliveryReport,
) -> dict[int, Mapping[str, Any]]:
    """Call the backend at most twice, and return what follows for each item."""
    now = database_now(outbox.database())
    can_force = False
    results: dict[str, Result]
    try:
        backend = get_backend(items[0].backend)
        can_force = bool(backend.can_force)  # a property, perhaps
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever importing it may raise
        results = {item.external_id: error for item in items}
    else:
        results = _call(backend, can_force, items, runs, now)
    for item in items:
        result = results[item.external_id]
        if result == StopOutcome.STOPPED and _is_held_by_another(item, runs.get(item.run_id)):
            results[item.external_id] = StopOutcome.TOLD  # that says nothing about the other job
    stopped = [item.run_id for item in items if results[item.external_id] == StopOutcome.STOPPED]
    unrecorded = _record_killed(stopped)
    values: dict[int, Mapping[str, Any]] = {}
    for item in items:
        result = results[item.external_id]
        told = _told(item, runs.get(item.run_id), can_force, result)
        told = told._replace(is_recorded=item.run_id not in unrecorded)
        values[item.pk] = _values(claim, item, told, result, now, report)
    return values


def _call(
    backend: BaseBackend,
    can_force: bool,
    items: list[CancellationItem],
    runs: Mapping[str, _Run],
    now: datetime,
) -> dict[str, Result]:
    """Call ``stop`` without and with force, and set ``force`` of the items as it was called."""
    requests: dict[bool, list[StopRequest]] = {False: [], True: []}
    for item in items:
        run = runs.get(item.run_id)
        escalates_at = escalation(_told(item, run, can_force, StopOutcome.TOLD), _limits())
        item.force = item.force or (escalates_at is not None and escalates_at <= now)
        running = _may_be_running(item, run)
        requests[item.force].append(StopRequest(item.run_id, item.external_id, running))
    results: dict[str, Result] = {}
    for force, chosen in requests.items():
        chosen.sort(key=lambda request: not request.running)
        if chosen:
            results |= _stop(backend, chosen, force)
    return results


def _stop(backend: BaseBackend, requests: Sequence[StopRequest], force: bool) -> dict[str, Result]:
    try:
        silence = BackendError(f"The backend {backend.alias!r} did not say what came of it.")
        answers = dict(backend.stop(requests, force=force))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it must not stop the worker
        return {each.external_id: error for each in requests}
    known = {
        key: each for key, each in answers.items() if isinstance(each, StopOutcome | Exception)
    }
    return {each.external_id: known.get(each.external_id, silence) for each in requests}


def _record_killed(run_ids: list[str]) -> set[str]:
    """Record that runs were killed, and return those of which somebody has locked the row."""
    if not run_ids:
        return set()
    record_stopped(run_ids, StopState.KILLED, wait=False)
    stopping = run_rows(run_id__in=run_ids, stop_state=StopState.STOPPING)
    return set(stopping.values_list("run_id", flat=True))


def _values(
    claim: Claim,
    item: CancellationItem,
    told: Told,
    result: Result,
    now: datetime,
    report: DeliveryReport,
) -> dict[str, Any]:
    """Return what to record of an item, and count it."""
    step = next_step(told, _limits(), now)
    error = step.note
    if isinstance(result, BaseException):
        is_last = step.delivery == Delivery.FAILED
        outbox.log_failure(claim.queue, item, result, is_last=is_last)
        error = outbox.described(result)
        report.failed += 1
    elif step.delivery == Delivery.PENDING:
        report.repeated += 1
    return {
        "delivery": step.delivery,
        "attempts": step.attempts,
        "next_attempt_at": None if step.wait is None else now + outbox.spread(step.wait),
        "escalates_at": step.escalates_at,
        "last_error": error,
        "force": item.force,
    }


def _told(item: CancellationItem, run: _Run | None, can_force: bool, result: Result) -> Told:
    return Told(
        outcome=None if isinstance(result, BaseException) else result,
        attempts=item.attempts,
        force=item.force,
        can_force=can_force,
        stop_state=run and run.stop_state,
        cancelled_at=run and run.finished_at,
    )


def _limits() -> Limits:
    return Limits(
        grace=timedelta(seconds=settings.GRACE_SECONDS),
        presume=timedelta(seconds=settings.PRESUME_SECONDS),
        max_attempts=settings.MAX_ATTEMPTS,
    )


def _may_be_running(item: CancellationItem, run: _Run | None) -> bool:
    if run is None:
        return item.previous_status not in WAITING
    return run.stop_state != StopState.NEVER_STARTED and run.execution_id != HANDED_BACK


def _is_held_by_another(item: CancellationItem, run: _Run | None) -> bool:
    """Tell whether the run waited for its job, but the code of an earlier one may not have left."""
    return item.previous_status in WAITING and _may_be_running(item, run)
