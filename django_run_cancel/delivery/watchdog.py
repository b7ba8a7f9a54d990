"""Deadlines of silent runs: escalation to force, presumed stops, and stalled runs timed out."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db.models import Q

from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.cancellation.force import DUE_BY_FORCE
from django_run_cancel.conf import settings
from django_run_cancel.db import locks
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.delivery import outbox
from django_run_cancel.delivery.rotation import Rotation
from django_run_cancel.models import run_rows
from django_run_cancel.safe_text import printable
from django_run_cancel.states import Delivery, RunStatus, StopState

logger = logging.getLogger("django_run_cancel")

SECONDS_BETWEEN_LOOKS = 1.0
"""Between two looks at all runs that are stopping."""

_escalating = Rotation("escalates_at")
_stopping = Rotation("created_at")
_running = Rotation("created_at")


def escalate(limit: int = 100) -> int:
    """Tell executors again, and by force, about runs that have outlived the grace.

    Args:
        limit: How many to look at.

    Returns:
        How many are due again.
    """
    delivered = outbox.items().filter(delivery=Delivery.DELIVERED)
    window = _escalating.window(delivered.filter(escalates_at__lte=DatabaseNow()), limit)
    if not window:
        return 0
    stopping = run_rows(run_id__in=[item.run_id for item in window], stop_state=StopState.STOPPING)
    found = set(stopping.values_list("run_id", flat=True))
    to_tell = delivered.filter(pk__in=[item.pk for item in window if item.run_id in found])
    stopped = delivered.filter(pk__in=[item.pk for item in window if item.run_id not in found])
    told = locks.update_unlocked(to_tell, **DUE_BY_FORCE)
    written = locks.update_unlocked(stopped, escalates_at=None)
    _escalating.advance([*told, *written])
    return len(told)


def presume(limit: int = 100) -> int:
    """Presume of runs that were cancelled long ago that their code does not run any more.

    Args:
        limit: How many at most.

    Returns:
        How many.
    """
    runs = run_rows(stop_state=StopState.STOPPING)
    long_ago = DatabaseNow() - timedelta(seconds=settings.PRESUME_SECONDS)
    window = _stopping.window(runs.filter(finished_at__lte=long_ago), limit)
    if not window:
        return 0
    recorded = record_stopped([run.run_id for run in window], StopState.PRESUMED, wait=False)
    _stopping.advance([run.pk for run in window if run.run_id in set(recorded)])
    return len(recorded)


def look_for_silent(limit: int = 100) -> int:
    """Do ``presume``, but once all have been looked at, not before a second has passed.

    All runs that are stopping must be read for it.

    Args:
        limit: How many at most.

    Returns:
        How many.
    """
    return 0 if _stopping.ended_within(SECONDS_BETWEEN_LOOKS) else presume(limit)


def look_for_stalled(limit: int = 100) -> int:
    """Do ``mark_stalled`` with ``RUN_CANCEL_STALLED_SECONDS``, if that is set, now and then.

    All running runs must be read for it. An index would have to be written with each heartbeat, so
    it is rather done in each process ten times in that span.

    Args:
        limit: How many at most.

    Returns:
        How many.
    """
    seconds = settings.STALLED_SECONDS
    if seconds is None or _running.ended_within(seconds / 10):
        return 0
    return mark_stalled(seconds, limit)


def mark_stalled(seconds: float, limit: int = 100) -> int:
    """Set running runs to ``timed_out`` that have given no sign of life for too long.

    Args:
        seconds: How long. Only for runs that use ``execution()``, which gives them.
        limit: How many at most.

    Returns:
        How many.
    """
    running = run_rows(status=RunStatus.RUNNING)
    before = DatabaseNow() - timedelta(seconds=seconds)
    silent = running.filter(
        Q(heartbeat_at__lt=before) | Q(heartbeat_at=None, started_at__lt=before)
    )
    reason = f"No sign of life for {seconds:g} seconds."
    window = _running.window(silent, limit)
    written = []
    # One by one: rows that are locked together must be locked in the order of cancellations.
    for run in window:
        if locks.update_unlocked(
            silent.filter(pk=run.pk),
            status=RunStatus.TIMED_OUT,
            finished_at=DatabaseNow(),
            failure_reason=reason,
        ):
            logger.warning("Run %s has timed out: %s", printable(run.run_id), reason)
            written.append(run.pk)
    _running.advance(written)
    return len(written)
