"""What the demo prints, and what it claims."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from demo import DemoFailed
from demo.client import Answer

POLL_SECONDS = 0.1


def heading(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def shortened(text: str) -> str:
    """Return the start of a key."""
    return f"{text[:11]}..."


def abridged(run_ids: Sequence[str]) -> str:
    """Return a JSON list of ids, as much of it as fits into a line."""
    if len(run_ids) <= 1:
        return json.dumps(run_ids)
    return f'["{run_ids[0]}", ... {len(run_ids) - 1} more]'


def show_answer(answer: Answer) -> None:
    """Print an answer."""
    print(f"{answer.status} {answer.reason} in {answer.milliseconds:.0f} ms")
    print(f"Cancellation-Id: {answer.headers['Cancellation-Id']}")
    for name in ("cancelled", "failed"):
        run_ids = answer.body[name]
        print(f"{name:<9} {len(run_ids):>3}  {abridged(run_ids)}")


def expect(condition: bool, claim: str) -> None:
    """Print a claim that holds.

    Raises:
        DemoFailed: It does not.
    """
    if not condition:
        raise DemoFailed(f"This does not hold: {claim}")
    print(f"ok  {claim}", flush=True)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for something.

    Raises:
        DemoFailed: It takes longer.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"After {seconds:g} seconds, this is not so: {what}.")
        time.sleep(POLL_SECONDS)
