"""Distinguishes a task that the host has enqueued again from a redelivered message."""

from __future__ import annotations

from datetime import datetime, tzinfo

from django.utils import timezone

from django_run_cancel.models import run_rows


def has_ended_before(run_id: str, moment: datetime) -> bool:
    """Tell whether a run ended before its task was enqueued, so that it is no redelivery.

    Also true if the run has no end time. The clocks of the two times may differ.

    Args:
        run_id: Public id of the run.
        moment: Time at which the task was enqueued.
    """
    ended_at = run_rows(run_id=run_id).values_list("finished_at", flat=True).first()
    return ended_at is None or moment > aware(ended_at, None)


def aware(moment: datetime, zone: tzinfo | None) -> datetime:
    """Make a naive time aware, with a zone, by default Django's. Aware times stay as they are."""
    return timezone.make_aware(moment, zone) if timezone.is_naive(moment) else moment
