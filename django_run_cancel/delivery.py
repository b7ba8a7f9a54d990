"""Working off the outbox: executors are told to stop, and the host's handlers are called.

Items are claimed in a short transaction, which moves the time that they are due by a lease. That
time is also the token of the claim: what comes of it is recorded only if the item still has it.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connections, router, transaction
from django.db.models import F, Min, QuerySet
from django.utils import timezone
from django.utils.module_loading import import_string

from django_run_cancel import watchdog
from django_run_cancel.backends import get_backend
from django_run_cancel.backends.base import BackendError, BaseBackend, StopOutcome, StopRequest
from django_run_cancel.conf import settings
from django_run_cancel.dispatch import redispatch
from django_run_cancel.evidence import record_stopped, run_rows
from django_run_cancel.models import CancellationItem
from django_run_cancel.states import WAITING, Delivery, StopState

logger = logging.getLogger("django_run_cancel")

LEASE = timedelta(seconds=60)
"""After which a claim is void: who made it has died. Far above the timeout of any backend."""

LONGEST_BACKOFF = 3600.0
LONGEST_REPEAT = 30.0
"""Seconds between attempts that fail, and between broadcasts that perhaps nobody heard."""

COOPERATIVE_ONLY = "This executor cannot stop it: its own checkpoints or the deadline end it."

Result = StopOutcome | Exception


class Queue(NamedTuple):
    """The fields of an item that make a queue of the items."""

    state: str
    attempts: str
    due: str
    error: str


DELIVERY = Queue("delivery", "attempts", "next_attempt_at", "last_error")
HANDLING = Queue("handling", "handling_attempts", "next_handling_at", "handling_error")


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


def deliver_due(limit: int = 100) -> DeliveryReport:
    """Do once all that is due: what ``run_cancel_worker`` does in a loop.

    Any number of processes may call this at once. Not inside a transaction: executors are called.

    Args:
        limit: How many items and runs of each kind.
    """
    report = DeliveryReport()
    report.escalated = watchdog.escalate(limit)
    _deliver(limit, report)
    _handle(limit, report)
    report.dispatched = redispatch(limit)
    report.presumed = watchdog.presume(limit)
    if settings.STALLED_SECONDS is not None:
        report.stalled = watchdog.mark_stalled(settings.STALLED_SECONDS, limit)
    return report


def retry_deliveries(items: QuerySet[CancellationItem] | None = None) -> int:
    """Try again what has failed for good: telling the executor, and handling.

    Args:
        items: Among these items; by default among all.

    Returns:
        How many items are due again.
    """
    items = CancellationItem.objects.all() if items is None else items
    items = items.using(_using()).order_by()
    count = 0
    for queue in (DELIVERY, HANDLING):
        again = {queue.state: Delivery.PENDING, queue.attempts: 0, queue.due: timezone.now()}
        count += items.filter(**{queue.state: Delivery.FAILED}).update(**again)
    return count


def queue_size() -> dict[str, int]:
    """Return the figures to watch: numbers of items and runs, and an age in seconds."""
    now = timezone.now()
    items = CancellationItem.objects.using(_using())
    runs = run_rows()
    oldest = None
    figures = {}
    for queue in (DELIVERY, HANDLING):
        pending = items.filter(**{queue.state: Delivery.PENDING})
        due = pending.filter(**{f"{queue.due}__lte": now})
        figures[f"{queue.state}_pending"] = pending.count()
        figures[f"{queue.state}_failed"] = items.filter(**{queue.state: Delivery.FAILED}).count()
        first = due.aggregate(first=Min(queue.due))["first"]
        oldest = min(filter(None, (oldest, first)), default=None)
    figures["dispatch_pending"] = runs.filter(dispatch_due_at__isnull=False).count()
    figures["stopping"] = runs.filter(stop_state=StopState.STOPPING).count()
    figures["oldest_due_seconds"] = int((now - oldest).total_seconds()) if oldest else 0
    return figures


def _using() -> str:
    return router.db_for_write(CancellationItem)


def _claim(queue: Queue, limit: int) -> list[CancellationItem]:
    now = timezone.now()
    until = now + LEASE
    items = CancellationItem.objects.using(_using())
    due = items.filter(**{queue.state: Delivery.PENDING, f"{queue.due}__lte": now})
    if not due.exists():
        return []  # without taking SQLite's only write lock every second
    skip_locked = connections[_using()].features.has_select_for_update_skip_locked
    with transaction.atomic(using=_using()):
        locked = due.select_for_update(skip_locked=skip_locked).order_by(queue.due, "pk")
        claimed = list(locked[:limit])
        items.filter(pk__in=[item.pk for item in claimed]).update(
            **{queue.attempts: F(queue.attempts) + 1, queue.due: until}
        )
    for item in claimed:
        setattr(item, queue.attempts, getattr(item, queue.attempts) + 1)
        setattr(item, queue.due, until)
    return claimed


def _deliver(limit: int, report: DeliveryReport) -> None:
    items = _claim(DELIVERY, limit)
    if not items:
        return
    names = [item.run_id for item in items]
    found = run_rows().filter(run_id__in=names).values_list(*_Run._fields)
    runs = {run.run_id: run for run in map(_Run._make, found)}
    groups: dict[str, list[CancellationItem]] = defaultdict(list)
    values: dict[int, dict[str, Any]] = {}
    killed = []
    for item in items:
        run = runs.get(item.run_id)
        if run and run.stop_state in {StopState.ACKNOWLEDGED, StopState.KILLED}:
            values[item.pk] = _settled()  # nothing is left to be stopped
        else:
            groups[item.backend].append(item)
    for alias, group in groups.items():
        backend, results = _tell(alias, group, runs)
        for item in group:
            run, result = runs.get(item.run_id), results[item.external_id]
            if isinstance(result, Exception):
                values[item.pk] = _failure(DELIVERY, item, result)
                report.failed += 1
            else:
                values[item.pk] = _after(result, item, run, backend)
                if result == StopOutcome.STOPPED:
                    killed.append(item.run_id)
    record_stopped(killed, StopState.KILLED)
    _record(items, values)
    states = [what["delivery"] for what in values.values()]
    report.delivered += states.count(Delivery.DELIVERED)
    report.repeated += len(states) - report.delivered - report.failed


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
        # A run whose row is gone may run all the same.
        running = run.stop_state != StopState.NEVER_STARTED if run else _was_running(item)
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
    silence: Exception = BackendError(f"The backend {backend.alias!r} did not say what came of it.")
    answers: Mapping[str, Result] = {}
    try:
        answers = backend.stop(requests, force=force)
    except Exception as error:  # noqa: BLE001 - it should not, and must not stop the worker
        silence = error
    return {each.external_id: answers.get(each.external_id, silence) for each in requests}


def _was_running(item: CancellationItem) -> bool:
    return item.previous_status not in WAITING


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
    if outcome == StopOutcome.TOLD or not open_ended or not cancelled_at:
        return _settled(force=item.force, next_attempt_at=escalates_at)
    if cancelled_at + patience <= now:
        return _settled(force=item.force)
    later = now + _backoff(item.attempts, LONGEST_REPEAT)
    return {
        **_settled(force=item.force),
        "delivery": Delivery.PENDING,
        # Repetitions leave some attempts to failures.
        "attempts": min(item.attempts, settings.MAX_ATTEMPTS // 2),
        "next_attempt_at": min(later, escalates_at or later),
    }


def _settled(error: str = "", **values: Any) -> dict[str, Any]:
    return {"next_attempt_at": None, "delivery": Delivery.DELIVERED, "last_error": error, **values}


def _failure(queue: Queue, item: CancellationItem, error: Exception) -> dict[str, Any]:
    attempts = getattr(item, queue.attempts)
    last = attempts >= settings.MAX_ATTEMPTS
    log = logger.error if last else logger.warning
    log("%s of %s, attempt %d: %r", queue.state, item.run_id, attempts, error, exc_info=error)
    return {
        queue.state: Delivery.FAILED if last else Delivery.PENDING,
        queue.due: None if last else timezone.now() + _backoff(attempts, LONGEST_BACKOFF),
        queue.error: _described(error),
    }


def _described(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"[:1000]
    # What databases cannot store: one such item would keep the others from being recorded.
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def _backoff(attempts: int, longest: float) -> timedelta:
    # The jitter also parts items that fail together from one that makes all of them fail.
    seconds = min(2.0 ** min(attempts, 20), longest)
    return timedelta(seconds=seconds * random.uniform(0.5, 1))  # noqa: S311


def _record(items: list[CancellationItem], values: Mapping[int, dict[str, Any]]) -> None:
    """Write what came of claimed items, those with the same in one statement."""
    claim = CancellationItem.objects.using(_using()).filter(
        delivery=Delivery.PENDING, next_attempt_at=items[0].next_attempt_at
    )
    same: dict[tuple[tuple[str, Any], ...], list[int]] = defaultdict(list)
    for pk, what in values.items():
        same[tuple(sorted(what.items()))].append(pk)
    with transaction.atomic(using=_using()):
        for pairs, pks in same.items():
            claim.filter(pk__in=pks).update(**dict(pairs))


def _handle(limit: int, report: DeliveryReport) -> None:
    """Call the handlers of each item in the transaction that marks it as handled."""
    for item in _claim(HANDLING, limit):
        claim = CancellationItem.objects.using(_using()).filter(
            pk=item.pk, handling=Delivery.PENDING, next_handling_at=item.next_handling_at
        )
        try:
            with transaction.atomic(using=_using()):
                if not claim.update(
                    handling=Delivery.DELIVERED, next_handling_at=None, handling_error=""
                ):
                    continue  # the handlers before took longer than the lease
                for path in settings.HANDLERS:
                    import_string(path)(item)
                if connections[_using()].needs_rollback:  # or it would be undone without a word
                    raise RuntimeError(
                        "A handler caught an error of the database: wrap in atomic()"
                    )
            report.handled += 1
        except Exception as error:  # noqa: BLE001 - of the host
            claim.update(**_failure(HANDLING, item, error))
            report.failed += 1
