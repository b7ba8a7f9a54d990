"""The jobs that workers run in the conformance suite, and the trace that each leaves in a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from django_run_cancel.execution import Execution, current_run

TRACE_FOLDER = "RUN_CANCEL_TRACE_FOLDER"
"""The environment variable with the folder of the traces."""

TRIES = 3
"""How often in all the worker tries a job that raises ``JobFailed``."""

PAUSE_SECONDS = 0.05
LONG = 2400
"""Pauses that a job makes which nobody stops: much longer than a test takes."""


class JobFailed(Exception):
    """What a job raises that its executor is to try again."""


def trace(run_id: str, event: str) -> None:
    """Add a line to the trace of a run; it survives whatever happens to the process."""
    with (Path(os.environ[TRACE_FOLDER]) / run_id).open("a") as file:
        file.write(f"{event}\n")


def read_trace(folder: Path, run_id: str) -> list[str]:
    """Return the lines of the trace of a run."""
    path = folder / run_id
    return path.read_text().splitlines() if path.exists() else []


def has_tries_left(run_id: str) -> bool:
    """Tell whether a job is to be tried again, for executors that do not count that themselves."""
    folder = Path(os.environ[TRACE_FOLDER])
    return read_trace(folder, run_id).count("started") < TRIES


def run_job(execution: Execution) -> None:
    """Do what the title of the run says. The worker calls this inside of ``execution()``.

    Raises:
        JobFailed: The job is to be tried again, ``TRIES`` times in all.
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
    """Do what the title of the current run says, in a task that an integration tracks.

    Raises:
        JobFailed: The task is to be tried again, ``TRIES`` times in all.
    """
    if (execution := current_run()) is None:
        raise RuntimeError("The task is not tracked.")
    run_job(execution)


def describe(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Give a run the title of the job that its task was published with: RUN_CANCEL_DESCRIBE."""
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
    """Go on for long without a checkpoint."""
    for _ in range(LONG):
        trace(run_id, "tick")
        time.sleep(PAUSE_SECONDS)


def swallows_exceptions(execution: Execution, run_id: str) -> None:
    """Go on for long without a checkpoint, whatever is raised from outside."""
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
    """Go on without a checkpoint until there is a file named after the run, and then fail."""
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
