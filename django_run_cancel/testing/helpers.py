"""Functions for tests: ``cancel_now()`` and ``wait_until()``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_run_cancel.cancellation import CancelResult
    from django_run_cancel.models import AbstractRun

PATIENCE_SECONDS = 120.0
"""Default timeout of ``wait_until()``, long enough for a slow or busy machine."""


def cancel_now(run: AbstractRun, *, reason: str = "", force: bool = False) -> CancelResult:
    """Cancel a run, so that the next ``checkpoint()`` in this process raises ``RunCancelled``.

    It polls in the calling thread. So it also works inside the transaction of a ``TestCase``, whose
    uncommitted rows the watcher thread cannot read.

    Args:
        run: The run.
        reason: Reason to record.
        force: Whether the executor may kill the work at once.

    Returns:
        The result of ``cancel_runs()``.
    """
    # Imported here, as settings modules import this package before the app registry is ready.
    from django_run_cancel.cancellation import cancel_runs
    from django_run_cancel.execution.watcher import poll_now

    result = cancel_runs([run.run_id], requested_by="tests", reason=reason, force=force)
    poll_now()
    return result


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS
) -> None:
    """Wait until a condition is true.

    Args:
        condition: Called repeatedly until it returns a true value.
        what: Description of the condition for the error message.
        seconds: Timeout.

    Raises:
        AssertionError: The condition was not true before the timeout.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {seconds:g} s for {what}.")
        time.sleep(0.02)
