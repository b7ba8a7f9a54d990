"""Fixtures of the tests of cancellations."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from django_run_cancel.db import trees
from django_run_cancel.models import get_run_model
from django_run_cancel.signals import run_cancelled, runs_cancelled
from tests.cancellation.threads import Workers, deadlocks, is_deadlock
from tests.delivery.helpers import look_again


@pytest.fixture
def received() -> Iterator[list[Any]]:
    """Collect what both signals send."""
    entries: list[Any] = []

    def receive(signal: Any, sender: Any, **kwargs: Any) -> None:
        assert sender is get_run_model()
        entries.append(kwargs)

    run_cancelled.connect(receive)
    runs_cancelled.connect(receive)
    yield entries
    run_cancelled.disconnect(receive)
    runs_cancelled.disconnect(receive)


@pytest.fixture
def stale_closure(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the first reading of a tree, without locks, miss all that is below its top."""
    readings: list[int] = []
    real = trees.read_closure

    def read_closure(*args: Any) -> tuple[set[Any], set[Any]]:
        reached, closure = real(*args)
        readings.append(len(closure))
        return reached, set(reached) if len(readings) == 1 else closure

    monkeypatch.setattr(trees, "read_closure", read_closure)
    return readings


@pytest.fixture
def workers(transactional_db: None) -> Iterator[Workers]:
    """Yield a starter of threads; afterwards, no statement of theirs may have met a deadlock."""
    before = deadlocks()
    with ThreadPoolExecutor() as executor:
        workers = Workers(executor)
        yield workers
    if workers.deadlocks_expected:
        return
    # Also those that were dealt with by trying again. Being refused a lock is not one.
    errors = [error for worker in workers.all for error in worker.errors]
    assert [error for error in errors if is_deadlock(error)] == []
    assert deadlocks() <= before


@pytest.fixture
def announced() -> Iterator[list[str]]:
    """Yield the ids that ``run_cancelled`` has been sent for."""
    run_ids: list[str] = []
    many: list[str] = []

    def one_receiver(run_id: str, **kwargs: Any) -> None:
        run_ids.append(run_id)

    def many_receiver(run_ids: list[str], **kwargs: Any) -> None:
        many.extend(run_ids)

    run_cancelled.connect(one_receiver)
    runs_cancelled.connect(many_receiver)
    yield run_ids
    run_cancelled.disconnect(one_receiver)
    runs_cancelled.disconnect(many_receiver)
    assert sorted(run_ids) == sorted(many)


@pytest.fixture
def not_looked_yet() -> None:
    """Let the next delivery look at all runs that still stop, whenever that was done before."""
    look_again()
