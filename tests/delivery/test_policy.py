"""The table in docs/howto/delivery-worker.md, case by case."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from django_run_cancel.backends import StopOutcome
from django_run_cancel.delivery.policy import (
    COOPERATIVE_ONLY,
    Limits,
    NextStep,
    StopAttempt,
    backoff,
    next_step,
)
from django_run_cancel.states import Delivery

PAGE = Path(__file__).parents[2] / "docs/howto/delivery-worker.md"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
LIMITS = Limits(timedelta(seconds=30), timedelta(seconds=300), max_attempts=10)


def table() -> list[list[str]]:
    section = PAGE.read_text("utf-8").split("## What follows on an executor's answer")[1]
    lines = re.findall(r"^\|(.+)\|$", section.split("\n## ")[0], flags=re.M)
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:]]


def attempt_in(row: list[str]) -> StopAttempt:
    answer, run, attempt, force, *_ = row
    outcome = re.match(r"`(\w+)`", answer)
    is_deleted = run == "deleted"
    return StopAttempt(
        outcome=StopOutcome(outcome[1]) if outcome else None,
        attempts=int(attempt),
        force=force == "was used",
        can_force=force != "not possible",
        stop_state=None if is_deleted else run.replace(" ", "_"),
        cancelled_at=None if is_deleted else NOW - timedelta(seconds=10),
        is_recorded="locked" not in answer,
    )


def shown(step: NextStep) -> list[str]:
    wait = "none" if step.wait is None else f"in {step.wait.total_seconds():g} s"
    at = step.escalates_at
    return [
        step.delivery.value,
        wait,
        "never" if at is None else f"in {(at - NOW).total_seconds():g} s",
    ]


@pytest.mark.parametrize("row", table(), ids=" ".join)
def test_case(row: list[str]) -> None:
    assert shown(next_step(attempt_in(row), LIMITS, NOW)) == row[4:]


def test_table__has_every_answer() -> None:
    answers = {attempt_in(row).outcome for row in table()}
    assert answers == {*StopOutcome, None}
    assert len(table()) > 20


def test_repetitions__leave_attempts_to_failures() -> None:
    attempt = StopAttempt(StopOutcome.TOLD_ONCE, 9, stop_state="stopping", cancelled_at=NOW)
    step = next_step(attempt, LIMITS, NOW)
    assert (step.attempts, step.escalates_at) == (5, None)
    assert next_step(attempt, LIMITS._replace(max_attempts=9), NOW).attempts == 4


def test_told_once__not_after_the_presumption() -> None:
    attempt = StopAttempt(StopOutcome.TOLD_ONCE, 1, stop_state="stopping", cancelled_at=NOW)
    before, after = NOW + timedelta(seconds=299.9), NOW + timedelta(seconds=300)
    assert [next_step(attempt, LIMITS, now).delivery for now in (before, after)] == [
        "pending",
        "delivered",
    ]


def test_overdue_escalation__is_next() -> None:
    attempt = StopAttempt(
        StopOutcome.TOLD_ONCE, 9, can_force=True, stop_state="stopping", cancelled_at=NOW
    )
    step = next_step(attempt, LIMITS, NOW + timedelta(seconds=40))
    assert step.wait == timedelta()


def test_stopped__is_the_end() -> None:
    step = next_step(StopAttempt(StopOutcome.STOPPED, 1), LIMITS, NOW)
    assert step == NextStep(Delivery.DELIVERED, attempts=1)


def test_unsupported__is_said() -> None:
    assert next_step(StopAttempt(StopOutcome.UNSUPPORTED, 1), LIMITS, NOW).note == COOPERATIVE_ONLY


def test_failure__keeps_what_the_caller_records() -> None:
    assert next_step(StopAttempt(None, 1), LIMITS, NOW).note is None


def test_failure__after_the_maximum_was_lowered() -> None:
    assert next_step(StopAttempt(None, 11), LIMITS, NOW).delivery == "failed"


def test_waits__have_upper_bounds() -> None:
    patient = LIMITS._replace(max_attempts=1000, presume=timedelta(days=1))
    failed = next_step(StopAttempt(None, 500), patient, NOW)
    repeated = StopAttempt(StopOutcome.TOLD_ONCE, 500, stop_state="stopping", cancelled_at=NOW)
    assert failed.wait == timedelta(hours=1)
    assert next_step(repeated, patient, NOW).wait == timedelta(seconds=30)


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(1, 2), (3, 8), (11, 2048), (12, 3600), (10**6, 3600)]
)
def test_exponential(attempts: int, seconds: int) -> None:
    assert backoff(attempts, timedelta(hours=1)) == timedelta(seconds=seconds)
