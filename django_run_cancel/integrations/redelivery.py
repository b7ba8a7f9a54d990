"""Tells a task that a host has enqueued again from one that the broker has delivered again."""

from __future__ import annotations

from datetime import datetime, tzinfo

from django.utils import timezone

from django_run_cancel.models import run_rows


def has_ended_before(run_id: str, moment: datetime) -> bool:
    """Tell whether a run has ended before a moment, or does not say when.

    What was enqueued later is no message that is delivered again. The clocks of the two may differ.

    Args:
        run_id: The run.
        moment: When its task was enqueued.
    """
    ended_at = run_rows(run_id=run_id).values_list("finished_at", flat=True).first()
    return ended_at is None or moment > aware(ended_at, None)


def aware(moment: datetime, zone: tzinfo | None) -> datetime:
    """Return a time with a zone; by default that of Django, which has none if not ``USE_TZ``."""
    return timezone.make_aware(moment, zone) if timezone.is_naive(moment) else moment
