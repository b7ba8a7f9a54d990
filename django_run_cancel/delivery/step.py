"""``deliver_due()``: one step of the delivery worker, which sends stop requests to executors."""

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
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.delivery import outbox, watchdog
from django_run_cancel.delivery.dispatcher import redispatch
from django_run_cancel.delivery.handlers import handle_due
from django_run_cancel.delivery.outbox import DELIVERY, Claim
from django_run_cancel.delivery.policy import Limits, StopAttempt, escalation_time, next_step
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
"""Duration after which a step delivers no further items with expired claims."""

BULK_SECONDS = 1.0
"""Duration for which a step advances bulk cancellations before it sends stop requests."""

Result = StopOutcome | BaseException


@dataclass
class DeliveryReport:
    """What one step of the delivery worker did.

    Attributes:
        delivered: Items whose delivery is complete.
        repeated: Items with a stop request that will be sent again, as the executor may not have
            received it.
        failed: Failed attempts of deliveries and handlers.
        handled: Items for which all handlers were called.
        escalated: Items that became due for a stop request with force.
        dispatched: Runs that were dispatched again.
        presumed: Runs that are now presumed to have stopped.
        stalled: Runs without a heartbeat that were set to ``timed_out``.
        advanced: Processed runs of bulk cancellations.
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
        """Tell whether the step has done anything, so that there may be more to do."""
        return any(asdict(self).values())


class _Run(NamedTuple):
    """The columns of an item's run that a delivery needs."""

    run_id: str
    stop_state: str
    finished_at: datetime | None
    execution_id: UUID | None


def deliver_due(limit: int = 100) -> DeliveryReport:
    """Do one step of the command ``deliver_cancellations``: process all kinds of due work once.

    Any number of processes may call this concurrently. Do not call it inside a transaction, as it
    makes network requests to executors.

    Args:
        limit: Maximum number of items per backend, and of items or runs for other kinds of work.
    """
    report = DeliveryReport()
    report.advanced = advance_bulk_cancellations(BULK_SECONDS)
    report.escalated = watchdog.escalate(limit)
    # A claim for each backend, so that an unavailable executor does not delay the others.
    for alias in outbox.aliases_with_due_items():
        if claim := outbox.claim_due(DELIVERY, limit, backend=alias):
            _deliver(claim, report)
    until = time.monotonic() + ABANDONED_SECONDS
    for _ in range(limit):
        # Before the claim, which takes an attempt.
        if time.monotonic() > until:
            break
        abandoned = outbox.claim_abandoned(DELIVERY)
        if abandoned is None:
            break
        _deliver(abandoned, report)
    handled, failed = handle_due(limit)
    report.handled += handled
    report.failed += failed
    report.dispatched = redispatch(limit)
    report.presumed = watchdog.presume_if_due(limit)
    report.stalled = watchdog.mark_stalled_if_due(limit)
    return report


def _deliver(claim: Claim, report: DeliveryReport) -> None:
    """Send stop requests for claimed items, all of one backend, and record the results."""
    if not claim.items:
        return
    rows = run_rows(run_id__in=[item.run_id for item in claim.items])
    runs = {row[0]: _Run._make(row) for row in rows.values_list(*_Run._fields)}
    values: dict[int, Mapping[str, Any]] = {}
    to_stop = []
    _set_previous_status(claim.items)
    for item in claim.items:
        run = runs.get(item.run_id)
        if run and run.stop_state in {StopState.ACKNOWLEDGED, StopState.KILLED}:
            values[item.pk] = {**_DELIVERED, "last_error": ""}  # has stopped already
        else:
            to_stop.append(item)
    if to_stop:
        values |= _send_stop_requests(claim, to_stop, runs, report)
    outbox.record(claim, values)
    report.delivered += sum(each["delivery"] == Delivery.DELIVERED for each in values.values())


def _set_previous_status(items: list[CancellationItem]) -> None:
    """Set ``previous_status`` of repeated requests to the run's status before its cancellation.

    It decides whether the answer ``STOPPED`` proves that the code has stopped. If the first item
    has been deleted, assume ``queued``: then it proves nothing while the code may be running.
    """
    later = {item.run_id: item for item in items if item.outcome == Outcome.ALREADY_CANCELLED}
    if not later:
        return
    first_items = outbox.items().filter(run_id__in=list(later), outcome=Outcome.CANCELLED)
    statuses = dict(first_items.order_by("pk").values_list("run_id", "previous_status"))
    for run_id, item in later.items():
        item.previous_status = statuses.get(run_id, RunStatus.QUEUED)


_DELIVERED = {"delivery": Delivery.DELIVERED, "next_attempt_at": None, "escalates_at": None}


def _send_stop_requests(
    claim: Claim,
    items: list[CancellationItem],
    runs: Mapping[str, _Run],
    report: DeliveryReport,
) -> dict[int, Mapping[str, Any]]:
    """Call the backend once or twice, and return the field values to record for each item."""
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
        if result == StopOutcome.STOPPED and _is_owned_by_earlier_job(item, runs.get(item.run_id)):
            results[item.external_id] = StopOutcome.TOLD  # says nothing about the earlier job
    stopped = [item.run_id for item in items if results[item.external_id] == StopOutcome.STOPPED]
    unrecorded = _record_killed(stopped)
    values: dict[int, Mapping[str, Any]] = {}
    for item in items:
        result = results[item.external_id]
        attempt = _stop_attempt(item, runs.get(item.run_id), can_force, result)
        attempt = attempt._replace(is_recorded=item.run_id not in unrecorded)
        values[item.pk] = _values_to_record(claim, item, attempt, result, now, report)
    return values


def _call(
    backend: BaseBackend,
    can_force: bool,
    items: list[CancellationItem],
    runs: Mapping[str, _Run],
    now: datetime,
) -> dict[str, Result]:
    """Call ``stop()`` for items without and with force; set ``force`` of items that escalate."""
    requests: dict[bool, list[StopRequest]] = {False: [], True: []}
    for item in items:
        run = runs.get(item.run_id)
        escalates_at = escalation_time(
            _stop_attempt(item, run, can_force, StopOutcome.TOLD), _limits()
        )
        item.force = item.force or (escalates_at is not None and escalates_at <= now)
        running = _may_be_running(item, run)
        requests[item.force].append(StopRequest(item.run_id, item.external_id, running))
    results: dict[str, Result] = {}
    for force, batch in requests.items():
        batch.sort(key=lambda request: not request.running)
        if batch:
            results |= _stop(backend, batch, force)
    return results


def _stop(backend: BaseBackend, requests: Sequence[StopRequest], force: bool) -> dict[str, Result]:
    try:
        no_answer = BackendError(f"The backend {backend.alias!r} did not say what came of it.")
        answers = dict(backend.stop(requests, force=force))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the worker must go on
        return {each.external_id: error for each in requests}
    valid_answers = {
        key: each for key, each in answers.items() if isinstance(each, StopOutcome | Exception)
    }
    return {each.external_id: valid_answers.get(each.external_id, no_answer) for each in requests}


def _record_killed(run_ids: list[str]) -> set[str]:
    """Record that runs were killed, and return the ids of those whose row is locked."""
    if not run_ids:
        return set()
    record_stopped(run_ids, StopState.KILLED, wait=False)
    is_stopping = is_one_of("stop_state", [StopState.STOPPING])
    stopping = run_rows(run_id__in=run_ids).filter(is_stopping)
    return set(stopping.values_list("run_id", flat=True))


def _values_to_record(
    claim: Claim,
    item: CancellationItem,
    attempt: StopAttempt,
    result: Result,
    now: datetime,
    report: DeliveryReport,
) -> dict[str, Any]:
    """Return the field values to record for an item, and count it in the report."""
    step = next_step(attempt, _limits(), now)
    error = step.note
    if isinstance(result, BaseException):
        is_last = step.delivery == Delivery.FAILED
        outbox.log_failure(claim.queue, item, result, is_last=is_last)
        error = outbox.error_text(result)
        report.failed += 1
    elif step.delivery == Delivery.PENDING:
        report.repeated += 1
    return {
        "delivery": step.delivery,
        "attempts": step.attempts,
        "next_attempt_at": None if step.wait is None else now + outbox.jitter(step.wait),
        "escalates_at": step.escalates_at,
        "last_error": error,
        "force": item.force,
    }


def _stop_attempt(
    item: CancellationItem, run: _Run | None, can_force: bool, result: Result
) -> StopAttempt:
    return StopAttempt(
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


def _is_owned_by_earlier_job(item: CancellationItem, run: _Run | None) -> bool:
    """Tell whether the run was waiting for this job while code of an earlier job may still run."""
    return item.previous_status in WAITING and _may_be_running(item, run)
