"""Runs that this process has just created or read, below which it is about to create others.

A chord publishes its members one by one, and each is below the run of its body.
"""

from __future__ import annotations

import time

from django_run_cancel.models import AbstractRun

SECONDS = 10
"""How long a run is kept."""

MAX_RUNS = 1_000

_runs: dict[tuple[str, str], tuple[float, AbstractRun]] = {}


def add(using: str, run: AbstractRun) -> None:
    """Keep a run that has been committed."""
    if len(_runs) >= MAX_RUNS:
        _runs.clear()
    _runs[using, run.run_id] = (time.monotonic() + SECONDS, run)


def get(using: str, run_id: str) -> AbstractRun | None:
    """Return a run that was kept, as it was then: its key and its tenant do not change."""
    until, run = _runs.get((using, run_id), (0.0, None))
    return run if time.monotonic() < until else None


def clear() -> None:
    """Forget all runs, because one of them may have been deleted."""
    _runs.clear()
