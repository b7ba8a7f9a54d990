"""Jobs that workers execute in the conformance suite; each writes a trace to a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from django_run_cancel.execution import Execution, current_run

TRACE_FOLDER = "RUN_CANCEL_TRACE_FOLDER"
"""Name of the environment variable with the folder of the traces."""

TRIES = 3
"""Total number of tries of a job that raises ``JobFailed``."""

PAUSE_SECONDS = 0.05
LONG = 2400
"""Number of pauses of a job that is not stopped: much longer than a test takes."""


class JobFailed(Exception):
    """Raised by a job that its executor must retry."""


def trace(run_id: str, event: str) -> None:
    """Append a line to the trace of a run, a file that survives the process."""
    with (Path(os.environ[TRACE_FOLDER]) / run_id).open("a") as file:
        file.write(f"{event}\n")


def read_trace(folder: Path, run_id: str) -> list[str]:
    """Return the lines of the trace of a run."""
    path = folder / run_id
    return path.read_text().splitlines() if path.exists() else []


def has_tries_left(run_id: str) -> bool:
    """Tell whether a job has tries left, for executors that do not count the tries."""
    folder = Path(os.environ[TRACE_FOLDER])
    return read_trace(folder, run_id).count("started") < TRIES


def run_job(execution: Execution) -> None:
    """Execute the job that is named in the run's title. Called inside of ``execution()``.

    Raises:
        JobFailed: The executor must retry the job, up to ``TRIES`` tries in total.
    """
    run = execution.run
    trace(run.run_id, "started")
    try:
        JOBS[run.title](execution, run.run_id)
    except BaseException as error:
        trace(run.run_id, f"raised {type(error).__name__}")
        raise
    finally:
        trace(run.run_id, "left")


def run_current_job() -> None:
    """Execute the job that is named in the current run's title, in a task of an integration.

    Raises:
        JobFailed: The executor must retry the task, up to ``TRIES`` tries in total.
    """
    if (execution := current_run()) is None:
        raise RuntimeError("The task is not tracked.")
    run_job(execution)


def describe(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """RUN_CANCEL_DESCRIBE of the workers: sets the run's title to the argument of its task."""
    title = args[0] if args else kwargs.get("title")
    return {"title": title} if title in list(JOBS) else {}


def returns(execution: Execution, run_id: str) -> None:
    """End at once."""


def checks(execution: Execution, run_id: str) -> None:
    """Stop at the next checkpoint."""
    for _ in range(LONG):
        execution.checkpoint()
        time.sleep(PAUSE_SECONDS)


def never_checks(execution: Execution, run_id: str) -> None:
    """Run for long without a checkpoint."""
    for _ in range(LONG):
        trace(run_id, "tick")
        time.sleep(PAUSE_SECONDS)


def swallows_exceptions(execution: Execution, run_id: str) -> None:
    """Run for long without a checkpoint, and suppress exceptions raised from outside."""
    for _ in range(LONG):
        try:
            trace(run_id, "tick")
            time.sleep(PAUSE_SECONDS)
        except BaseException as error:  # noqa: BLE001 - the point of this job
            trace(run_id, f"swallowed {type(error).__name__}")


def fails_once(execution: Execution, run_id: str) -> None:
    """Fail at the first try."""
    folder = Path(os.environ[TRACE_FOLDER])
    if read_trace(folder, run_id).count("started") == 1:
        raise JobFailed


def fails_always(execution: Execution, run_id: str) -> None:
    """Fail at every try."""
    raise JobFailed


def fails_when_told(execution: Execution, run_id: str) -> None:
    """Run without a checkpoint until a file named after the run exists, and then fail."""
    while not (Path(os.environ[TRACE_FOLDER]) / f"{run_id}.fail").exists():
        time.sleep(PAUSE_SECONDS)
    raise JobFailed


JOBS: dict[str, Callable[[Execution, str], None]] = {
    job.__name__: job
    for job in (
        returns,
        checks,
        never_checks,
        swallows_exceptions,
        fails_once,
        fails_always,
        fails_when_told,
    )
}
