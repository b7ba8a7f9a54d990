"""The work that every executor is given, and the trace that it leaves in files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

FOLDER = "TRACE_FOLDER"


TRIES = 3


class Oops(Exception):
    """What a job fails with that its executor tries again."""


def trace(run_id: str, what: str) -> None:
    """Add a line to the trace of a run; it survives whatever happens to the process."""
    with (Path(os.environ[FOLDER]) / run_id).open("a") as file:
        file.write(f"{what}\n")


def traced(folder: Path, run_id: str) -> list[str]:
    path = folder / run_id
    return path.read_text().splitlines() if path.exists() else []


def body(execution: Any) -> None:
    """Do what the title of the run says."""
    run = execution.run
    trace(run.run_id, "started")
    try:
        BODIES[run.title](execution, run.run_id)
    except BaseException as error:
        trace(run.run_id, f"raised {type(error).__name__}")
        raise
    finally:
        trace(run.run_id, "left")


def short(execution: Any, run_id: str) -> None:
    """End at once."""


def asks(execution: Any, run_id: str) -> None:
    """Stop at the next checkpoint."""
    for _ in range(1200):
        execution.checkpoint()
        time.sleep(0.05)


def deaf(execution: Any, run_id: str) -> None:
    """Never ask."""
    for _ in range(600):
        trace(run_id, "tick")
        time.sleep(0.1)


def stubborn(execution: Any, run_id: str) -> None:
    """Never ask, and swallow all that can be raised from outside."""
    for _ in range(600):
        try:
            trace(run_id, "tick")
            time.sleep(0.1)
        except BaseException as error:  # noqa: BLE001 - that is the point
            trace(run_id, f"swallowed {type(error).__name__}")


def fails_first(execution: Any, run_id: str) -> None:
    """Fail at the first try only."""
    if traced(Path(os.environ[FOLDER]), run_id).count("started") == 1:
        raise Oops


def fails_always(execution: Any, run_id: str) -> None:
    """Fail at every try."""
    raise Oops


def has_tries_left(run_id: str) -> bool:
    """Tell whether a job that its executor does not try again is to try again itself."""
    return traced(Path(os.environ[FOLDER]), run_id).count("started") < TRIES


def fails_when_told(execution: Any, run_id: str) -> None:
    """Run on until there is a file, without asking, and then fail."""
    while not (Path(os.environ[FOLDER]) / f"{run_id}.go").exists():
        time.sleep(0.05)
    fails_first(execution, run_id)


BODIES = {
    function.__name__: function
    for function in (short, asks, deaf, stubborn, fails_first, fails_always, fails_when_told)
}
