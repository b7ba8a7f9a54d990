"""Bulk cancellations at work: advancing in turn, aborting, and rows or databases that refuse."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.cancellation import (
    abort_bulk_cancellation,
    advance_bulk_cancellations,
    cancel_runs,
    chunks,
    progress_of,
    retry_bulk_cancellation,
)
from django_run_cancel.cancellation import transaction as transaction_parts
from django_run_cancel.cancellation.chunks import Pace, advance_chunk
from django_run_cancel.db import locks
from django_run_cancel.delivery import deliver_due, queue_size
from django_run_cancel.models import Cancellation, CancellationChunk
from tests.cancellation.helpers import RUN, counts, finish, start
from tests.helpers import (
    IS_MYSQL,
    IS_POSTGRESQL,
    IS_SQLITE,
    ids,
    locked_elsewhere,
    make_run,
    make_runs,
    statuses,
    unwritable,
)


def lock_timeout() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        (shown,) = cursor.fetchone()
    return str(shown)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Let each transaction cancel ten runs, however fast the machine is."""

    class Fixed(Pace):
        def adapt(self, count: int, seconds: float) -> None:
            pass

    fixed = Fixed()
    fixed.size = 10
    monkeypatch.setattr(chunks, "_pace", fixed)
    return fixed


@pytest.mark.django_db(transaction=True)
class TestAdvancing:
    def test_step_by_step(self, pace: Pace) -> None:
        make_runs(25)
        record = start()
        assert counts(record) == (25, 0, 0, 0, 0)
        assert progress_of([record])[record.pk].rate is None
        assert advance_chunk(record.pk) == 10
        record.refresh_from_db()
        progress = progress_of([record])[record.pk]
        assert (record.state, progress.processed_count) == ("running", 10)
        assert progress.rate is not None
        assert progress.rate > 0
        assert progress.estimated_end is not None
        assert queue_size()["bulk_pending"] == 15
        assert [advance_chunk(record.pk) for _ in range(3)] == [10, 5, 0]
        record.refresh_from_db()
        assert (record.state, record.cancelled_count) == ("completed", 25)
        assert progress_of([record])[record.pk].estimated_end is None
        assert queue_size()["bulk_pending"] == 0

    def test_says_once_that_it_has_begun(self, pace: Pace) -> None:
        make_runs(25)
        record = start()
        update = "UPDATE " + connection.ops.quote_name(Cancellation._meta.db_table)
        with CaptureQueriesContext(connection) as captured:
            assert finish(record).state == "completed"
        assert sum(update in query["sql"] for query in captured) == 2

    def test_one_that_comes_in_takes_its_turn(
        self, pace: Pace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_runs(30, tenant="a")
        make_runs(10, tenant="b")
        first = start(runs=RUN._base_manager.filter(tenant="a"))
        turns: list[int] = []

        def turn(pk: int) -> int:
            if not turns:
                start(runs=RUN._base_manager.filter(tenant="b"))
            turns.append(pk)
            return advance_chunk(pk)

        monkeypatch.setattr(chunks, "ROTATION_SECONDS", -1.0)
        monkeypatch.setattr(chunks, "advance_chunk", turn)
        finish(first)
        second = Cancellation.objects.exclude(pk=first.pk).get()
        assert turns[:4] == [first.pk, first.pk, second.pk, first.pk]
        assert second.state == "completed"

    def test_by_the_delivery_worker(self, pace: Pace) -> None:
        runs = make_runs(25)
        record = start()
        report = deliver_due()
        assert report.advanced == 25
        record.refresh_from_db()
        assert record.state == "completed"
        assert set(statuses(*runs)) == {"cancelled"}
        assert deliver_due().advanced == 0

    def test_in_turn(self, pace: Pace) -> None:
        """A small one does not wait for the end of a large one."""
        large, small = make_runs(100), make_runs(5, tenant="small")
        first = start(run_ids=ids(large))
        second = start(run_ids=ids(small))
        assert advance_bulk_cancellations(0) == 10
        advance_bulk_cancellations(60, Cancellation.objects.filter(pk=second.pk))
        second.refresh_from_db()
        assert second.state == "completed"
        assert counts(first)[1] == 10

    def test_time_is_up(self, pace: Pace) -> None:
        make_runs(100)
        start()
        assert advance_bulk_cancellations(0) == 10

    def test_children_and_ends_meanwhile(self, pace: Pace) -> None:
        parent, done, before = make_run(), make_run(), make_run()
        record = start()
        child = parent.create_child()
        done.mark_running()
        done.mark_completed()
        cancel_runs([before.run_id], requested_by="somebody else")
        finish(record)
        assert counts(record) == (3, 2, 1, 1, 1)
        assert statuses(parent, child, done, before) == [
            *("cancelled", "cancelled", "completed", "cancelled")
        ]
        before.refresh_from_db()
        assert before.cancellation.requested_by == "somebody else"

    def test_force(self) -> None:
        stopping = make_run("running")
        cancel_runs([stopping.run_id], requested_by="tests")
        stopping.refresh_from_db()
        record = start(run_ids=[stopping.run_id], force=True)
        finish(record)
        assert record.items.get().outcome == "already_cancelled"
        assert stopping.cancellation.items.get().force

    def test_abort(self, pace: Pace) -> None:
        runs = make_runs(25)
        record = start()
        advance_chunk(record.pk)
        assert abort_bulk_cancellation(record)
        assert (record.state, counts(record)) == ("aborted", (25, 10, 0, 0, 0))
        assert record.finished_at is not None
        finish(record)
        assert sorted(statuses(*runs)) == ["cancelled"] * 10 + ["queued"] * 15
        assert record.state == "aborted"
        assert not abort_bulk_cancellation(record)
        assert counts(record) == (25, 10, 0, 0, 0)

    def test_process_died_before_the_end_was_written(self, pace: Pace) -> None:
        make_runs(5)
        record = start()
        chunks._advance(CancellationChunk.objects.all(), 10, True)
        assert not CancellationChunk.objects.filter(state="pending").exists()
        finish(record)
        assert (record.state, record.cancelled_count) == ("completed", 5)


@pytest.mark.django_db(transaction=True)
class TestObstacles:
    def test_refused_row(self, pace: Pace) -> None:
        runs = make_runs(25)
        with unwritable(runs[7]):
            record = start()
            finish(record)
            assert (record.state, counts(record)) == ("failed", (25, 24, 0, 1, 0))
            assert statuses(runs[7]) == ["queued"]
            failed = CancellationChunk.objects.get(state="failed")
            assert failed.run_ids == [runs[7].run_id]
            assert failed.last_error
            assert retry_bulk_cancellation(record) == 1
            assert record.state == "running"
            finish(record)
            assert (record.state, counts(record)) == ("failed", (25, 24, 0, 1, 0))
        assert retry_bulk_cancellation(record) == 1
        finish(record)
        assert (record.state, counts(record)) == ("completed", (25, 25, 0, 0, 0))
        assert set(statuses(*runs)) == {"cancelled"}
        assert retry_bulk_cancellation(record) == 0

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
    def test_locked_row(self, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
        """PostgreSQL itself would wait until the row is unlocked."""
        monkeypatch.setattr(locks, "LOCK_WAIT", "200ms")
        runs = make_runs(5)
        record = start()
        with locked_elsewhere(runs[2]), connection.cursor() as cursor:
            if IS_MYSQL:
                cursor.execute("SET innodb_lock_wait_timeout = 1")
            try:
                assert advance_bulk_cancellations(60) == 0
            finally:
                if IS_MYSQL:
                    cursor.execute("SET innodb_lock_wait_timeout = DEFAULT")
            chunk = CancellationChunk.objects.get()
            assert (chunk.state, chunk.attempts, chunk.position) == ("pending", 1, 0)
            assert chunk.next_attempt_at is not None
            assert chunk.last_error
        assert advance_bulk_cancellations(60) == 0  # not due yet
        CancellationChunk.objects.update(next_attempt_at=timezone.now() - timedelta(hours=1))
        finish(record)
        assert (record.state, record.cancelled_count) == ("completed", 5)

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="is for PostgreSQL alone")
    @pytest.mark.parametrize(("of_host", "then"), [("0", "5s"), ("70s", "70s"), ("1s", "1s")])
    def test_how_long_locks_are_waited_for(
        self, of_host: str, then: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_run()
        record = start()
        seen = []

        def note_limit(*args: Any) -> Any:
            seen.append(lock_timeout())
            return transaction_parts.lock_trees(*args)

        monkeypatch.setattr(chunks, "lock_trees", note_limit)
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{of_host}'")
            try:
                assert advance_chunk(record.pk) == 1
                with transaction.atomic():
                    advance_chunk(record.pk)
                    seen.append(lock_timeout())
            finally:
                cursor.execute("RESET lock_timeout")
        assert seen == [then, of_host]

    def test_database_fails_in_a_transaction_of_the_caller(
        self, pace: Pace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_run()
        record = start()

        def fail(*args: Any) -> None:
            raise OperationalError("gone")

        monkeypatch.setattr(chunks, "lock_trees", fail)
        with transaction.atomic(), pytest.raises(OperationalError, match="gone"):
            advance_chunk(record.pk)

    def test_aborted_while_it_failed(self, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
        make_run()
        record = start()

        def fail(*args: Any) -> None:
            raise OperationalError("gone")

        def describe(*args: Any) -> str:
            abort_bulk_cancellation(record)
            return "gone"

        monkeypatch.setattr(chunks, "lock_trees", fail)
        monkeypatch.setattr(chunks, "describe_error", describe)
        assert advance_bulk_cancellations(60) == 0
        assert (record.state, CancellationChunk.objects.get().state) == ("aborted", "aborted")


def test_pace(settings: Any) -> None:
    settings.RUN_CANCEL_MAX_LOCK_MS = 100
    pace = Pace()
    pace.adapt(100, 0.01)
    assert pace.size == 200  # at most twice as many
    pace.adapt(200, 0.04)
    assert pace.size == 200
    pace.adapt(200, 0.4)
    assert pace.size == 20
    pace.adapt(3, 0.001)  # the rest of a chunk says little
    assert pace.size == 20
    pace.adapt(3, 0.04)
    assert pace.size == 3
    pace.adapt(3, 60)
    assert pace.size == 1
