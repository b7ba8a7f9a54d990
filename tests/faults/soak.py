"""What the processes of the soak do, each for some seconds, and the journal of what they were told.

A line of the journal is written after the answer came: whatever it says must be true for ever.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from django.db import OperationalError, transaction

from django_run_cancel.backends import StopOutcome, get_backend
from django_run_cancel.cancellation import cancel_runs, start_bulk_cancellation
from django_run_cancel.delivery import deliver_due
from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import DummyBackend
from tests.helpers import ids, make_run

Journal = list[tuple[str, str]]
"""Words and ids: ``cancelled``, ``failed``, ``born``, ``completed``, ``saved``."""


def some_runs(luck: random.Random, count: int, **lookups: Any) -> list[Any]:
    """Return some of the newest runs, in no order."""
    runs = get_run_model()._base_manager.filter(**lookups).exclude(run_type="refund")
    found = list(runs.order_by("-created_at")[:60])
    return luck.sample(found, min(count, len(found)))


def cancel(luck: random.Random) -> Journal:
    runs = some_runs(luck, luck.randint(1, 8))
    result = cancel_runs(ids(runs), requested_by="soak", force=luck.random() < 0.2)
    told = {*result.cancelled, *result.failed}
    assert told == {run.run_id for run in runs}
    return [*words("cancelled", result.cancelled), *words("failed", result.failed)]


def cancel_slowly(luck: random.Random) -> Journal:
    """Join a transaction that goes on for a while, in which others meet the locks."""
    with transaction.atomic():
        journal = cancel(luck)
        time.sleep(0.02)
    return journal


def cancel_and_roll_back(luck: random.Random) -> Journal:
    """Join a transaction that comes to nothing: the answer is not valid, and is not noted."""
    with transaction.atomic():
        cancel_runs(ids(some_runs(luck, 3)), requested_by="rolled back")
        transaction.set_rollback(True)
    return []


def start_bulk(luck: random.Random) -> Journal:
    chosen = ids(some_runs(luck, 10))
    start_bulk_cancellation(
        get_run_model()._base_manager.all(), run_ids=chosen, requested_by="soak"
    )
    return []


def work(luck: random.Random) -> Journal:
    """Start runs and complete them."""
    done: Journal = []
    for run in some_runs(luck, 4, status__in=["created", "queued", "running"]):
        with suppress(TransitionNotAllowed):
            if run.status != "running":
                run.mark_running()
            if luck.random() < 0.3:
                run.mark_queued()
            else:
                run.mark_completed()
                done.append(("completed", run.run_id))
    return done


def spawn(luck: random.Random) -> Journal:
    """Create runs, and children of runs that may be cancelled at this moment."""
    born = [make_run("queued", external_id=luck.choice(["", "job"])) for _ in range(3)]
    for run in some_runs(luck, 4):
        with suppress(RunCancelled):
            child = run.create_child(status="running", backend="dummy", external_id="job")
            born.append(child)
            born.append(child.create_child())
    return words("born", ids(born))


def save_stale_instances(luck: random.Random) -> Journal:
    stale = some_runs(luck, 20)
    time.sleep(luck.uniform(0, 0.05))
    for run in stale:
        run.status, run.stop_state, run.cancellation, run.title = "queued", "", None, "saved"
        run.save()
    return words("saved", ids(stale))


def deliver(luck: random.Random) -> Journal:
    backend = get_backend("dummy")
    assert isinstance(backend, DummyBackend)
    backend.outcome = luck.choice([*StopOutcome, RuntimeError("the executor is away")])
    deliver_due(limit=20)
    return []


ROLES: list[list[Callable[[random.Random], Journal]]] = [
    [cancel, cancel_slowly],
    [cancel, cancel_and_roll_back, start_bulk, deliver],
    [work],
    [spawn, work],
    [save_stale_instances, deliver],
]
"""What each process does, in turn."""


def words(word: str, run_ids: Iterable[str]) -> Journal:
    return [(word, run_id) for run_id in run_ids]


def live(number: int, seed: int, seconds: float) -> Journal:
    """Do what one process does, and return its journal.

    Args:
        number: Which of the processes.
        seed: Of its choices.
        seconds: For how long.

    Raises:
        AssertionError: A deadlock, or a lock that was not released.
    """
    luck = random.Random(f"{seed} {number}")
    journal: Journal = []
    until = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < until or rounds < 10:
        for action in ROLES[number]:
            try:
                journal += action(luck)
            except OperationalError as error:
                raise AssertionError(f"{action.__name__} was refused: {error}") from error
        rounds += 1
    return journal
