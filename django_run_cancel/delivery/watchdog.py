"""Deadlines of runs: escalation to force, presumption of stops, and time-out of stalled runs."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db.models import Q

from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.cancellation.force import DUE_BY_FORCE
from django_run_cancel.conf import settings
from django_run_cancel.db import locks
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.delivery import outbox
from django_run_cancel.delivery.rotation import Rotation
from django_run_cancel.models import run_rows
from django_run_cancel.safe_text import printable
from django_run_cancel.states import Delivery, RunStatus, StopState

logger = logging.getLogger("django_run_cancel")

SECONDS_BETWEEN_LOOKS = 1.0
"""Minimum time between two scans of all stopping runs in one process."""

_escalating = Rotation("escalates_at")
_stopping = Rotation("created_at")
_running = Rotation("created_at")


def escalate(limit: int = 100) -> int:
    """Make items due for a stop request with force, if their run is still stopping after the grace.

    Args:
        limit: Maximum number of items to read.

    Returns:
        Number of items that are due again.
    """
    delivered = outbox.items().filter(delivery=Delivery.DELIVERED)
    window = _escalating.window(delivered.filter(escalates_at__lte=DatabaseNow()), limit)
    if not window:
        return 0
    stopping = run_rows(run_id__in=[item.run_id for item in window]).filter(
        is_one_of("stop_state", [StopState.STOPPING])
    )
    stopping_ids = set(stopping.values_list("run_id", flat=True))
    to_escalate = delivered.filter(
        pk__in=[item.pk for item in window if item.run_id in stopping_ids]
    )
    stopped = delivered.filter(
        pk__in=[item.pk for item in window if item.run_id not in stopping_ids]
    )
    escalated = locks.update_unlocked(to_escalate, **DUE_BY_FORCE)
    cleared = locks.update_unlocked(stopped, escalates_at=None)
    _escalating.advance([*escalated, *cleared])
    return len(escalated)


def presume(limit: int = 100) -> int:
    """Set runs that are still stopping after ``RUN_CANCEL_PRESUME_SECONDS`` to ``presumed``.

    Args:
        limit: Maximum number of runs.

    Returns:
        Number of updated runs.
    """
    runs = run_rows(stop_state=StopState.STOPPING)
    long_ago = DatabaseNow() - timedelta(seconds=settings.PRESUME_SECONDS)
    window = _stopping.window(runs.filter(finished_at__lte=long_ago), limit)
    if not window:
        return 0
    recorded = record_stopped([run.run_id for run in window], StopState.PRESUMED, wait=False)
    _stopping.advance([run.pk for run in window if run.run_id in set(recorded)])
    return len(recorded)


def presume_if_due(limit: int = 100) -> int:
    """Call ``presume()``, but start a new scan at most once a second.

    A scan reads all stopping runs.

    Args:
        limit: Maximum number of runs.

    Returns:
        Number of updated runs.
    """
    return 0 if _stopping.ended_within(SECONDS_BETWEEN_LOOKS) else presume(limit)


def mark_stalled_if_due(limit: int = 100) -> int:
    """Call ``mark_stalled()`` if ``RUN_CANCEL_STALLED_SECONDS`` is set, ten times in that span.

    A scan reads all running runs, as an index of heartbeats would be written with each of them.

    Args:
        limit: Maximum number of runs.

    Returns:
        Number of updated runs.
    """
    seconds = settings.STALLED_SECONDS
    if seconds is None or _running.ended_within(seconds / 10):
        return 0
    return mark_stalled(seconds, limit)


def mark_stalled(seconds: float, limit: int = 100) -> int:
    """Set running runs without a recent heartbeat to ``timed_out``.

    Only useful if the code of all runs uses ``execution()``, which writes heartbeats.

    Args:
        seconds: Maximum age of the last heartbeat.
        limit: Maximum number of runs.

    Returns:
        Number of updated runs.
    """
    running = run_rows(status=RunStatus.RUNNING)
    before = DatabaseNow() - timedelta(seconds=seconds)
    silent = running.filter(
        Q(heartbeat_at__lt=before) | Q(heartbeat_at=None, started_at__lt=before)
    )
    reason = f"No heartbeat for {seconds:g} seconds."
    window = _running.window(silent, limit)
    written = []
    # Update one row at a time: several would have to be locked in the order of cancellations.
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
