"""The delivery worker's step: executors are told to stop, over and over if need be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from django_run_cancel import sql, watchdog
from django_run_cancel.backends import get_backend
from django_run_cancel.backends.base import BackendError, BaseBackend, StopOutcome, StopRequest
from django_run_cancel.conf import settings
from django_run_cancel.dispatch import redispatch
from django_run_cancel.evidence import record_stopped
from django_run_cancel.handling import handle_due
from django_run_cancel.models import CancellationItem, run_rows
from django_run_cancel.outbox import DELIVERY, backoff, claim, claimed, database, due_items, failure
from django_run_cancel.states import HANDED_BACK, WAITING, Delivery, StopState

LONGEST_REPEAT = 30.0
"""Seconds between broadcasts that perhaps nobody heard."""

MAX_REPEATS = 3
"""Of a broadcast about a run that never started: it is refused at the start anyhow."""

COOPERATIVE_ONLY = "This executor cannot stop it: its own checkpoints or the deadline end it."

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
    """

    delivered: int = 0
    repeated: int = 0
    failed: int = 0
    handled: int = 0
    escalated: int = 0
    dispatched: int = 0
    presumed: int = 0
    stalled: int = 0

    def __bool__(self) -> bool:
        """Tell whether anything was done, so that there may be more."""
        return any(asdict(self).values())


class _Run(NamedTuple):
    run_id: str
    stop_state: str
    finished_at: datetime | None
    execution_id: UUID | None


def deliver_due(limit: int = 100) -> DeliveryReport:
    """Do once all that is due: what ``run_cancel_worker`` does in a loop.

    Any number of processes may call this at once. Not inside a transaction: executors are called.

    Args:
        limit: How many items of each backend, and how many items and runs of each other kind.
    """
    report = DeliveryReport()
    report.escalated = watchdog.escalate(limit)
    # Each backend for itself: one that ends this process costs the items of no other an attempt,
    # and one that is away does not starve the others.
    due = list(due_items(DELIVERY).values_list("backend", flat=True)[:limit])
    for alias in sorted({*due, *(settings.BACKENDS if len(due) == limit else ())}):
        if items := claim(DELIVERY, limit, backend=alias):
            _deliver(alias, items, report)
    handled, failed = handle_due(limit)
    report.handled += handled
    report.failed += failed
    report.dispatched = redispatch(limit)
    report.presumed = watchdog.presume(limit)
    report.stalled = watchdog.look_for_stalled(limit)
    return report


def _deliver(alias: str, items: list[CancellationItem], report: DeliveryReport) -> None:
    found = run_rows(run_id__in=[item.run_id for item in items]).values_list(*_Run._fields)
    runs = {run.run_id: run for run in map(_Run._make, found)}
    values: dict[int, Mapping[str, Any]] = {}
    open_items = []
    stopped = {}
    failed = 0
    for item in items:
        run = runs.get(item.run_id)
        if run and run.stop_state in {StopState.ACKNOWLEDGED, StopState.KILLED}:
            values[item.pk] = _settled()  # nothing is left to be stopped
        else:
            open_items.append(item)
    backend, results = _tell(alias, open_items, runs) if open_items else (None, {})
    for item in open_items:
        result = results[item.external_id]
        if result == StopOutcome.STOPPED and _is_held_by_another(item, runs.get(item.run_id)):
            result = StopOutcome.TOLD  # that this job will not run says nothing about the other
        if isinstance(result, BaseException):
            values[item.pk] = failure(DELIVERY, item, result)
            failed += 1
        else:
            values[item.pk] = _after(result, item, runs.get(item.run_id), backend)
            if result == StopOutcome.STOPPED:
                stopped[item.run_id] = item
    for run_id in _unrecorded(list(stopped)):
        values[stopped[run_id].pk] = _again(stopped[run_id])
    _record(items, values)
    states = [what["delivery"] for what in values.values()]
    delivered = states.count(Delivery.DELIVERED)
    report.delivered += delivered
    report.failed += failed
    report.repeated += len(states) - delivered - failed


def _unrecorded(run_ids: list[str]) -> list[str]:
    """Record that runs were killed, and return those of which somebody has locked the row."""
    if not run_ids:
        return []
    record_stopped(run_ids, StopState.KILLED, wait=False)
    stopping = run_rows(run_id__in=run_ids, stop_state=StopState.STOPPING)
    return list(stopping.values_list("run_id", flat=True))


def _tell(
    alias: str, items: list[CancellationItem], runs: Mapping[str, _Run]
) -> tuple[BaseBackend | None, dict[str, Result]]:
    """Call the backend at most twice, and set ``force`` of the items as it was called."""
    try:
        backend = get_backend(alias)
    except Exception as error:  # noqa: BLE001 - whatever importing it may raise
        return None, {item.external_id: error for item in items}
    now = timezone.now()
    requests: dict[bool, list[StopRequest]] = {False: [], True: []}
    for item in items:
        run = runs.get(item.run_id)
        running = _may_be_running(item, run)
        escalates_at = _escalates_at(item, run, backend)
        item.force = item.force or (escalates_at is not None and escalates_at <= now)
        requests[item.force].append(StopRequest(item.run_id, item.external_id, running))
    results: dict[str, Result] = {}
    for force, chosen in requests.items():
        chosen.sort(key=lambda request: not request.running)
        if chosen:
            results |= _stop(backend, chosen, force)
    return backend, results


def _stop(backend: BaseBackend, requests: Sequence[StopRequest], force: bool) -> dict[str, Result]:
    silence = BackendError(f"The backend {backend.alias!r} did not say what came of it.")
    try:
        answers = dict(backend.stop(requests, force=force))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it must not stop the worker
        return {each.external_id: error for each in requests}
    known = {
        key: each for key, each in answers.items() if isinstance(each, StopOutcome | Exception)
    }
    return {each.external_id: known.get(each.external_id, silence) for each in requests}


def _may_be_running(item: CancellationItem, run: _Run | None) -> bool:
    if run is None:
        return item.previous_status not in WAITING
    return run.stop_state != StopState.NEVER_STARTED and run.execution_id != HANDED_BACK


def _is_held_by_another(item: CancellationItem, run: _Run | None) -> bool:
    """Tell whether the run waited for its job, but the code of an earlier one may not have left."""
    return item.previous_status in WAITING and _may_be_running(item, run)


def _escalates_at(
    item: CancellationItem, run: _Run | None, backend: BaseBackend | None
) -> datetime | None:
    """Return when a run that still stops is to be told by force; None for never."""
    if backend is None or not backend.can_force or item.force:
        return None
    if run is None or run.stop_state != StopState.STOPPING or run.finished_at is None:
        return None
    return run.finished_at + timedelta(seconds=settings.GRACE_SECONDS)


def _after(
    outcome: StopOutcome, item: CancellationItem, run: _Run | None, backend: BaseBackend | None
) -> dict[str, Any]:
    """Return what to record of an item of which the executor has been told."""
    now = timezone.now()
    escalates_at = _escalates_at(item, run, backend)
    if outcome == StopOutcome.STOPPED:
        return _settled(force=item.force)
    if outcome == StopOutcome.UNSUPPORTED:
        return _settled(COOPERATIVE_ONLY, force=item.force, next_attempt_at=escalates_at)
    open_ended = run is not None and run.stop_state in {
        StopState.STOPPING,
        StopState.NEVER_STARTED,
    }
    patience = timedelta(seconds=settings.PRESUME_SECONDS)
    cancelled_at = run.finished_at if run else None
    if outcome == StopOutcome.TOLD or not open_ended or not run or not cancelled_at:
        return _settled(force=item.force, next_attempt_at=escalates_at)
    never_started = run.stop_state == StopState.NEVER_STARTED
    if cancelled_at + patience <= now or (never_started and item.attempts >= MAX_REPEATS):
        return _settled(force=item.force)
    return _again(item, escalates_at)


def _again(item: CancellationItem, latest: datetime | None = None) -> dict[str, Any]:
    later = timezone.now() + backoff(item.attempts, LONGEST_REPEAT)
    return {
        **_settled(force=item.force),
        "delivery": Delivery.PENDING,
        # Repetitions leave some attempts to failures.
        "attempts": min(item.attempts, settings.MAX_ATTEMPTS // 2),
        "next_attempt_at": min(later, latest or later),
    }


def _settled(error: str = "", **values: Any) -> dict[str, Any]:
    return {"next_attempt_at": None, "delivery": Delivery.DELIVERED, "last_error": error, **values}


def _record(items: list[CancellationItem], values: Mapping[int, Mapping[str, Any]]) -> None:
    """Write what came of claimed items, those with the same in one statement."""
    ours = claimed(DELIVERY, items[0])
    same: dict[tuple[tuple[str, Any], ...], list[int]] = defaultdict(list)
    for pk, what in values.items():
        same[tuple(sorted(what.items()))].append(pk)
    with transaction.atomic(using=database()):
        for pairs, pks in same.items():
            # What a handler has locked for long is told again, after the lease.
            sql.update_unlocked(ours.filter(pk__in=pks), **dict(pairs))
