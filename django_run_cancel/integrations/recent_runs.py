"""Cache of runs that this process has just created or read, and that may get further children.

It saves queries for a chord, which publishes its members one by one, all children of one run.
"""

from __future__ import annotations

import time

from django_run_cancel.models import AbstractRun

SECONDS = 10
"""Seconds for which a run is cached."""

MAX_RUNS = 1_000

_runs: dict[tuple[str, str], tuple[float, AbstractRun]] = {}


def add(using: str, run: AbstractRun) -> None:
    """Cache a committed run."""
    if len(_runs) >= MAX_RUNS:
        _runs.clear()
    _runs[using, run.run_id] = (time.monotonic() + SECONDS, run)


def get(using: str, run_id: str) -> AbstractRun | None:
    """Return a cached run, or None. Only its primary key and tenant are sure to be current."""
    expires_at, run = _runs.get((using, run_id), (0.0, None))
    return run if time.monotonic() < expires_at else None


def clear() -> None:
    """Clear the cache, as one of its runs may have been deleted."""
    _runs.clear()
