"""When a chunk of a bulk cancellation is tried again after the database could not advance it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError

from django_run_cancel.cancellation import (
    chunks,
    progress_of,
    start_bulk_cancellation,
    transaction,
)
from django_run_cancel.cancellation.chunks import advance_chunk
from django_run_cancel.cancellation.transaction import Trees
from django_run_cancel.db.clock import database_now
from django_run_cancel.db.statements import Statement
from django_run_cancel.models import CancellationChunk, get_run_model
from tests.helpers import make_runs

pytestmark = pytest.mark.django_db(transaction=True)


def test_fewer_runs_after_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a transaction that takes longer than the server allows would be tried for ever."""
    make_runs(100)
    record = start_bulk_cancellation(
        get_run_model()._base_manager.all(), requested_by="tests"
    ).cancellation

    def lock_trees(asked: Statement, *args: Any) -> Trees:
        tree = transaction.lock_trees(asked, *args)
        if len(tree.rows) > 20:
            raise OperationalError("canceling statement due to statement timeout")
        return tree

    monkeypatch.setattr(chunks, "lock_trees", lock_trees)
    for _ in range(3):
        assert advance_chunk(record.pk) == 0
        CancellationChunk.objects.update(next_attempt_at=None)
    assert advance_chunk(record.pk) == 12


@pytest.mark.usefixtures("fixed_pace")
@pytest.mark.parametrize(("attempts", "seconds"), [(0, 1), (3, 8), (6, 60), (500, 60)])
def test_waits_longer_each_time_within_a_bound(
    attempts: int, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runs(3)
    record = start_bulk_cancellation(
        get_run_model()._base_manager.all(), requested_by="tests"
    ).cancellation
    CancellationChunk.objects.update(attempts=attempts)

    def fail(*args: Any) -> None:
        raise OperationalError("gone")

    before = database_now("default")
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "lock_trees", fail)
        assert advance_chunk(record.pk) == 0
    after = database_now("default")
    chunk = CancellationChunk.objects.get()
    assert (chunk.state, chunk.attempts, chunk.position) == ("pending", attempts + 1, 0)
    assert "OperationalError: gone" in chunk.last_error
    assert chunk.next_attempt_at is not None
    assert before <= chunk.next_attempt_at - timedelta(seconds=seconds) <= after
    assert advance_chunk(record.pk) == 0  # not due yet
    CancellationChunk.objects.update(next_attempt_at=before)
    assert advance_chunk(record.pk) == 3
    chunk.refresh_from_db()
    assert (chunk.state, chunk.attempts, chunk.next_attempt_at) == ("completed", 0, None)
    assert chunk.last_error == ""
    assert progress_of([record])[record.pk].cancelled_count == 3
