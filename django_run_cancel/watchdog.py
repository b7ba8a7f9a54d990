"""What happens to runs of which nothing is heard: harsher means, and in the end a presumption."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from django.db import router
from django.db.models import Q
from django.utils import timezone

from django_run_cancel import sql
from django_run_cancel.conf import settings
from django_run_cancel.evidence import record_stopped
from django_run_cancel.models import CancellationItem, run_rows
from django_run_cancel.states import Delivery, RunStatus, StopState

logger = logging.getLogger("django_run_cancel")

_looked_at = float("-inf")


def escalate(limit: int = 100) -> int:
    """Tell executors again, and by force, about runs that have outlived the grace.

    ``deliver_due`` has set ``next_attempt_at`` of delivered items to that moment, where the
    backend can force.

    Args:
        limit: How many to look at.

    Returns:
        How many are due again.
    """
    items = CancellationItem.objects.using(router.db_for_write(CancellationItem))
    delivered = items.filter(delivery=Delivery.DELIVERED)
    due = delivered.filter(next_attempt_at__lte=timezone.now()).order_by("next_attempt_at")
    run_ids = dict(due.values_list("pk", "run_id")[:limit])
    if not run_ids:
        return 0
    stopping = run_rows(run_id__in=run_ids.values(), stop_state=StopState.STOPPING)
    found = set(stopping.values_list("run_id", flat=True))
    again = [pk for pk, run_id in run_ids.items() if run_id in found]
    sql.update_unlocked(delivered.filter(pk__in=run_ids.keys() - again), next_attempt_at=None)
    values = {"delivery": Delivery.PENDING, "force": True, "attempts": 0, "last_error": ""}
    return len(sql.update_unlocked(delivered.filter(pk__in=again), **values))


def presume(limit: int = 100) -> int:
    """Presume of runs that were cancelled long ago that their code does not run any more.

    Args:
        limit: How many at most.

    Returns:
        How many.
    """
    long_ago = timezone.now() - timedelta(seconds=settings.PRESUME_SECONDS)
    runs = run_rows(stop_state=StopState.STOPPING, finished_at__lte=long_ago)
    run_ids = list(runs.order_by("created_at").values_list("run_id", flat=True)[:limit])
    return len(record_stopped(run_ids, StopState.PRESUMED, wait=False)) if run_ids else 0


def look_for_stalled(limit: int = 100) -> int:
    """Do ``mark_stalled`` with ``RUN_CANCEL_STALLED_SECONDS``, if that is set, now and then.

    All running runs must be looked at for it. An index would have to be written with each
    heartbeat, so it is rather done in each process ten times in that span.

    Args:
        limit: How many at most.

    Returns:
        How many.
    """
    global _looked_at
    seconds = settings.STALLED_SECONDS
    if seconds is None or time.monotonic() < _looked_at + seconds / 10:
        return 0
    count = mark_stalled(seconds, limit)
    if count < limit:
        _looked_at = time.monotonic()
    return count


def mark_stalled(seconds: float, limit: int = 100) -> int:
    """Set running runs to ``timed_out`` that have given no sign of life for too long.

    Args:
        seconds: How long. Only for runs that use ``execution()``, which gives them.
        limit: How many at most.

    Returns:
        How many.
    """
    now = timezone.now()
    before = now - timedelta(seconds=seconds)
    silent = Q(heartbeat_at__lt=before) | Q(heartbeat_at=None, started_at__lt=before)
    runs = run_rows(status=RunStatus.RUNNING).filter(silent)
    count = 0
    # One by one: rows that are locked together must be locked in the order of cancellations.
    for pk, run_id in list(runs.order_by("created_at").values_list("pk", "run_id")[:limit]):
        reason = f"No sign of life for {seconds:g} seconds."
        values = {"status": RunStatus.TIMED_OUT, "finished_at": now, "failure_reason": reason}
        with sql.leaving_out(run_id):
            if sql.update_unlocked(runs.filter(pk=pk), **values):
                logger.warning("Run %s has timed out: %s", run_id, reason)
                count += 1
    return count
