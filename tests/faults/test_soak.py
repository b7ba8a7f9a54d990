"""Processes that cancel, work, spawn children, save stale instances and deliver at the same time.

Afterwards the rows alone, and what each process was told, prove every invariant.
``RUN_CANCEL_FAULTS=long`` goes on for minutes, with other choices each time.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter, defaultdict
from functools import partial
from typing import Any

import pytest
from django.db.models import AutoField

from django_run_cancel.backends import StopOutcome
from django_run_cancel.models import Cancellation, get_run_model
from django_run_cancel.testing import DummyBackend
from tests.faults import soak
from tests.faults.helpers import IS_LONG, book, booked, finish_everything
from tests.faults.invariants import FINISHED, Rows, assert_rows_sound
from tests.faults.processes import Child
from tests.helpers import IS_SQLITE, make_runs

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]

SECONDS = 180 if IS_LONG else 6
SEED = random.randrange(10**9) if IS_LONG else 14


@pytest.mark.skipif(IS_SQLITE, reason="SQLite has one writer at a time: there are no races.")
@pytest.mark.skipif(
    not isinstance(get_run_model()._meta.pk, AutoField),
    reason="Keys that do not ascend can deadlock in a transaction of the caller.",
)
def test_everything_at_once(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{book.__module__}.{book.__name__}"]
    settings.RUN_CANCEL_MAX_TREE = 5  # so that some descendants are cancelled later
    make_runs(40)
    processes = [
        Child(partial(soak.live, number, SEED, SECONDS)) for number in range(len(soak.ROLES))
    ]
    kill_some_more()
    journal: dict[str, list[str]] = defaultdict(list)
    for process in processes:
        for word, run_id in process.wait().answer:
            journal[word].append(run_id)
    assert_rows_sound()
    check_births()
    dummy.outcome = StopOutcome.TOLD
    finish_everything()
    assert_rows_sound(everything_done=True)
    check_journal(journal)


def kill_some_more() -> None:
    """Meanwhile, let other processes do the same, each until it is killed."""
    luck = random.Random(SEED)
    until = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < until:
        number += 1
        victim = Child(partial(soak.live, number % len(soak.ROLES), SEED + number, 600))
        time.sleep(luck.uniform(0.2, 1))
        victim.send_signal(signal.SIGKILL)
        assert victim.wait().is_killed


def check_births() -> None:
    """Check that no child is younger than the cancellation of a run above it.

    A later request may have cancelled the child nevertheless. All clocks are those of this host.
    """
    rows = Rows()
    for run in rows.runs.values():
        for above in rows.above(run):
            if above.status == "cancelled":
                assert run.created_at < above.finished_at, f"{run} was born below {above}"


def check_journal(journal: dict[str, list[str]]) -> None:
    """Check that whatever somebody was told is true, and that each thing has happened once."""
    runs = get_run_model()._base_manager.all()
    status = {run.run_id: run.status for run in runs}
    cancelled = {run_id for run_id, now in status.items() if now == "cancelled"}
    # Each kind of thing has happened, or the soak would prove nothing.
    for word in ("cancelled", "failed", "completed", "born", "saved"):
        assert journal[word], f"Nothing was {word} (seed {SEED})."
    assert cancelled.issuperset(journal["cancelled"])
    assert {status[run_id] for run_id in journal["failed"]} <= FINISHED
    assert {status[run_id] for run_id in journal["completed"]} == {"completed"}
    assert max(Counter(journal["completed"]).values()) == 1
    assert status.keys() >= set(journal["born"])
    saved = set(journal["saved"])
    assert {run.title for run in runs if run.run_id in saved} == {"saved"}
    # With its effect exactly once, also when several workers were at it.
    assert Counter(booked()) == Counter(cancelled)
    assert not Cancellation.objects.filter(requested_by="rolled back").exists()
    assert Rows().cancelled_by.keys() == cancelled
