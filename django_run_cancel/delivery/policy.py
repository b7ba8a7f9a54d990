"""Decides when an item is delivered, told again, escalated or failed: a pure function.

Its cases are a table in ``docs/howto/delivery-worker.md``, which the tests run.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from django_run_cancel.backends.base import StopOutcome
from django_run_cancel.states import Delivery, StopState

LONGEST_WAIT_AFTER_FAILURE = timedelta(hours=1)

LONGEST_WAIT_TO_REPEAT = timedelta(seconds=30)
"""Between requests that perhaps nobody heard."""

MAX_REPEATS = 3
"""Of a request about a run that never started: its start is refused anyhow."""

COOPERATIVE_ONLY = "This executor cannot stop it: its own checkpoints or the deadline end it."


class Told(NamedTuple):
    """What is known once a backend has been called for one item.

    Attributes:
        outcome: The answer; None if the attempt failed.
        attempts: How many attempts there were, this one included.
        force: Whether it was told by force.
        can_force: Whether the backend can be told by force.
        stop_state: Of the run; None if the run is gone.
        cancelled_at: When the run was cancelled; None if the run is gone.
        is_recorded: Whether the evidence that follows from the answer could be written.
    """

    outcome: StopOutcome | None
    attempts: int
    force: bool = False
    can_force: bool = False
    stop_state: str | None = None
    cancelled_at: datetime | None = None
    is_recorded: bool = True


class Limits(NamedTuple):
    """The settings that decide.

    Attributes:
        grace: After which a run is told by force.
        presume: After which a run is presumed to have stopped.
        max_attempts: After which a delivery that fails has failed.
    """

    grace: timedelta
    presume: timedelta
    max_attempts: int


class NextStep(NamedTuple):
    """What becomes of the item.

    Attributes:
        delivery: Its new state.
        wait: Until the next attempt, before it is spread; None for no other attempt.
        escalates_at: When it is told by force; None for never.
        attempts: What counts as attempts from now on.
        note: What operators read in ``last_error``; None leaves it.
    """

    delivery: Delivery
    wait: timedelta | None = None
    escalates_at: datetime | None = None
    attempts: int = 0
    note: str | None = ""


def next_step(told: Told, limits: Limits, now: datetime) -> NextStep:
    """Decide what becomes of an item.

    Args:
        told: What is known.
        limits: The settings.
        now: The time of the database.
    """
    delivered = NextStep(Delivery.DELIVERED, None, escalation(told, limits), told.attempts)
    if told.outcome is None:
        return _after_failure(told, limits)
    if told.outcome == StopOutcome.STOPPED:
        # Without evidence it is told again: the answer will be the same.
        return delivered._replace(escalates_at=None) if told.is_recorded else _again(told, limits)
    if told.outcome == StopOutcome.UNSUPPORTED:
        return delivered._replace(note=COOPERATIVE_ONLY)
    if told.outcome == StopOutcome.TOLD_ONCE and _may_still_be_heard(told, limits, now):
        step = _again(told, limits)
        return step._replace(wait=_not_after(step.escalates_at, step.wait, now))
    return delivered


def escalation(told: Told, limits: Limits) -> datetime | None:
    """Return when a run that still stops is to be told by force; None for never."""
    if told.force or not told.can_force or told.stop_state != StopState.STOPPING:
        return None
    return told.cancelled_at and told.cancelled_at + limits.grace


def exponential(attempts: int, longest: timedelta) -> timedelta:
    """Return 2, 4, 8… seconds after so many attempts, at most ``longest``."""
    return min(timedelta(seconds=2.0 ** min(attempts, 20)), longest)


def _after_failure(told: Told, limits: Limits) -> NextStep:
    if told.attempts >= limits.max_attempts:
        return NextStep(Delivery.FAILED, attempts=told.attempts, note=None)
    wait = exponential(told.attempts, LONGEST_WAIT_AFTER_FAILURE)
    escalates_at = escalation(told, limits)
    return NextStep(Delivery.PENDING, wait, escalates_at, told.attempts, note=None)


def _again(told: Told, limits: Limits) -> NextStep:
    # Repetitions leave some attempts to failures.
    attempts = min(told.attempts, limits.max_attempts // 2)
    wait = exponential(told.attempts, LONGEST_WAIT_TO_REPEAT)
    return NextStep(Delivery.PENDING, wait, escalation(told, limits), attempts)


def _may_still_be_heard(told: Told, limits: Limits, now: datetime) -> bool:
    if told.cancelled_at is None or told.cancelled_at + limits.presume <= now:
        return False
    if told.stop_state == StopState.NEVER_STARTED:
        return told.attempts < MAX_REPEATS
    return told.stop_state == StopState.STOPPING


def _not_after(
    escalates_at: datetime | None, wait: timedelta | None, now: datetime
) -> timedelta | None:
    if escalates_at is None or wait is None:
        return wait
    return max(min(wait, escalates_at - now), timedelta())
