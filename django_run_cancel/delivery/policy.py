"""``next_step()``: a pure function that decides what follows on an attempt to stop a run.

The tests check it against the table of cases in ``docs/howto/delivery-worker.md``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from django_run_cancel.backends.base import StopOutcome
from django_run_cancel.states import Delivery, StopState

LONGEST_WAIT_AFTER_FAILURE = timedelta(hours=1)

LONGEST_WAIT_TO_REPEAT = timedelta(seconds=30)
"""Maximum time between stop requests that the executor may not have received."""

MAX_REPEATS = 3
"""Maximum stop requests for a run that never started; ``execution()`` refuses its start anyway."""

COOPERATIVE_ONLY = "This executor cannot stop it: its own checkpoints or the deadline end it."


class StopAttempt(NamedTuple):
    """One attempt to stop a run: the backend's answer, and the state of item and run.

    Attributes:
        outcome: The answer; None if the attempt failed.
        attempts: Number of attempts, including this one.
        force: Whether the stop request was sent with force.
        can_force: Whether the backend supports force.
        stop_state: Stop state of the run; None if the run has been deleted.
        cancelled_at: Time of the cancellation; None if the run has been deleted.
        is_recorded: False if the run's row was locked, so that its end could not be recorded.
    """

    outcome: StopOutcome | None
    attempts: int
    force: bool = False
    can_force: bool = False
    stop_state: str | None = None
    cancelled_at: datetime | None = None
    is_recorded: bool = True


class Limits(NamedTuple):
    """Settings for the decision.

    Attributes:
        grace: Time after the cancellation until a stop request with force.
        presume: Time after the cancellation until the run is presumed stopped.
        max_attempts: Maximum number of failed attempts.
    """

    grace: timedelta
    presume: timedelta
    max_attempts: int


class NextStep(NamedTuple):
    """The decision: new values of the item.

    Attributes:
        delivery: State of the delivery.
        wait: Time until the next attempt, before jitter; None for no further attempt.
        escalates_at: Time of a stop request with force; None for never.
        attempts: Number of attempts to record.
        note: Text for operators in ``last_error``; None keeps the existing one.
    """

    delivery: Delivery
    wait: timedelta | None = None
    escalates_at: datetime | None = None
    attempts: int = 0
    note: str | None = ""


def next_step(attempt: StopAttempt, limits: Limits, now: datetime) -> NextStep:
    """Decide what follows on an attempt.

    Args:
        attempt: The attempt.
        limits: The settings.
        now: Current time of the database.
    """
    delivered = NextStep(
        Delivery.DELIVERED, None, escalation_time(attempt, limits), attempt.attempts
    )
    if attempt.outcome is None:
        return _after_failure(attempt, limits)
    if attempt.outcome == StopOutcome.STOPPED:
        # If the end could not be recorded, repeat the request, for the same answer.
        return (
            delivered._replace(escalates_at=None)
            if attempt.is_recorded
            else _repeat(attempt, limits)
        )
    if attempt.outcome == StopOutcome.UNSUPPORTED:
        return delivered._replace(note=COOPERATIVE_ONLY)
    if attempt.outcome == StopOutcome.TOLD_ONCE and _needs_repetition(attempt, limits, now):
        step = _repeat(attempt, limits)
        return step._replace(wait=_limit_wait(step.escalates_at, step.wait, now))
    return delivered


def escalation_time(attempt: StopAttempt, limits: Limits) -> datetime | None:
    """Return the time of a stop request with force, if the run is still stopping; or None."""
    if attempt.force or not attempt.can_force or attempt.stop_state != StopState.STOPPING:
        return None
    return attempt.cancelled_at and attempt.cancelled_at + limits.grace


def backoff(attempts: int, longest: timedelta) -> timedelta:
    """Return the wait after a number of attempts: 2, 4, 8… seconds, at most ``longest``."""
    return min(timedelta(seconds=2.0 ** min(attempts, 20)), longest)


def _after_failure(attempt: StopAttempt, limits: Limits) -> NextStep:
    if attempt.attempts >= limits.max_attempts:
        return NextStep(Delivery.FAILED, attempts=attempt.attempts, note=None)
    wait = backoff(attempt.attempts, LONGEST_WAIT_AFTER_FAILURE)
    escalates_at = escalation_time(attempt, limits)
    return NextStep(Delivery.PENDING, wait, escalates_at, attempt.attempts, note=None)


def _repeat(attempt: StopAttempt, limits: Limits) -> NextStep:
    # Repetitions use at most half of the attempts, and leave the others for failures.
    attempts = min(attempt.attempts, limits.max_attempts // 2)
    wait = backoff(attempt.attempts, LONGEST_WAIT_TO_REPEAT)
    return NextStep(Delivery.PENDING, wait, escalation_time(attempt, limits), attempts)


def _needs_repetition(attempt: StopAttempt, limits: Limits, now: datetime) -> bool:
    if attempt.cancelled_at is None or attempt.cancelled_at + limits.presume <= now:
        return False
    if attempt.stop_state == StopState.NEVER_STARTED:
        return attempt.attempts < MAX_REPEATS
    return attempt.stop_state == StopState.STOPPING


def _limit_wait(
    escalates_at: datetime | None, wait: timedelta | None, now: datetime
) -> timedelta | None:
    if escalates_at is None or wait is None:
        return wait
    return max(min(wait, escalates_at - now), timedelta())
