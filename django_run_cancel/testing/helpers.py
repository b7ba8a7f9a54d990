"""Functions for tests: cancel a run so that running code sees it at once, wait for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_run_cancel.cancellation import CancelResult
    from django_run_cancel.models import AbstractRun

PATIENCE_SECONDS = 120.0
"""How long tests wait for a condition: longer than a slow or busy machine takes."""


def cancel_now(run: AbstractRun, *, reason: str = "", force: bool = False) -> CancelResult:
    """Cancel a run, and let its execution in this process see that before this returns.

    The next ``checkpoint()`` raises ``RunCancelled``, without waiting for a poll. This also works
    inside the transaction that a test is wrapped in, which the thread that polls cannot look into.

    Args:
        run: The run.
        reason: Why, for the record.
        force: Ask the executor to kill the work.

    Returns:
        As ``cancel_runs()``.
    """
    # Not above: settings of workers import this package before the apps are loaded.
    from django_run_cancel.cancellation import cancel_runs
    from django_run_cancel.execution.watcher import poll_now

    result = cancel_runs([run.run_id], requested_by="tests", reason=reason, force=force)
    poll_now()
    return result


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS
) -> None:
    """Return once a condition holds.

    Args:
        condition: Called until it returns something true.
        what: What is waited for, for the error.
        seconds: How long to wait.

    Raises:
        AssertionError: The condition did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {seconds:g} s for {what}.")
        time.sleep(0.02)
