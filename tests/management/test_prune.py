"""``prune_cancellations`` and ``prune_runs``: what goes, what stays, and who is kept waiting."""

from __future__ import annotations

import random
import signal
import threading
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.management import pruning
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from tests.helpers import IS_POSTGRESQL, IS_SQLITE, ids, make_run, make_runs, refusing

pytestmark = pytest.mark.django_db


def prune(*args: str) -> str:
    out = StringIO()
    call_command(*args, stdout=out)
    return out.getvalue()


def days_ago(days: float) -> Any:
    return timezone.now() - timedelta(days=days)


def left() -> set[Any]:
    return set(get_run_model()._base_manager.all())


class TestPruneCancellations:
    def cancel(self, days: int, **fields: Any) -> Any:
        """Cancel a run, so many days ago, and return the record and the run."""
        job = make_run("running", **fields)
        record = cancel_runs([job.run_id], requested_by="x").cancellation
        Cancellation.objects.filter(pk=record.pk).update(requested_at=days_ago(days))
        return record, job

    def test_deletes_what_is_old_and_done(self) -> None:
        old, job = self.cancel(91, external_id="")
        undelivered, _ = self.cancel(91)
        failed, _ = self.cancel(91)
        failed.items.update(delivery="failed")
        escalating, _ = self.cancel(91)
        escalating.items.update(delivery="delivered", escalates_at=timezone.now())
        unhandled, _ = self.cancel(91, external_id="")
        unhandled.items.update(handling="pending")
        young, _ = self.cancel(89, external_id="")
        assert prune("prune_cancellations", "--older-than", "90d", "--dry-run") == (
            "Would delete 1 cancellation.\n"
        )
        assert Cancellation.objects.count() == 6
        assert prune("prune_cancellations", "--older-than", "90d") == "Deleted 1 cancellation.\n"
        kept = {undelivered, failed, escalating, unhandled, young}
        assert set(Cancellation.objects.all()) == kept
        assert not CancellationItem.objects.filter(cancellation=old.pk).exists()
        job.refresh_from_db()
        assert (job.status, job.cancellation, job.stop_state) == ("cancelled", None, "stopping")

    def test_many_records_and_runs(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(pruning, "BATCH_SIZE", 3)
        jobs = make_runs(7)
        cancel_runs(ids(jobs), requested_by="x")
        for _ in range(150):
            cancel_runs(ids(jobs[:1]), requested_by="x")
        Cancellation.objects.update(requested_at=days_ago(2))
        CancellationItem.objects.update(delivery="delivered")
        assert "Deleted 151 " in prune("prune_cancellations", "--older-than", "24h")
        assert not Cancellation.objects.exists()
        assert not get_run_model()._base_manager.exclude(cancellation=None).exists()

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite has no row locks.")
    def test_locks_in_the_order_of_keys(self) -> None:
        self.cancel(2, external_id="")
        with CaptureQueriesContext(connection) as captured:
            prune("prune_cancellations", "--older-than", "24h")
        locks = [query["sql"] for query in captured if "FOR UPDATE" in query["sql"]]
        assert len(locks) == 2  # runs, items
        assert all(" ORDER BY " in sql for sql in locks)

    @pytest.mark.django_db(transaction=True)
    def test_a_record_that_a_trigger_refuses_to_delete_keeps_no_other(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        refused, _ = self.cancel(2, external_id="")
        self.cancel(2, external_id="")
        with refusing(Cancellation, f"OLD.id = {refused.pk}", "DELETE"):
            assert prune("prune_cancellations", "--older-than", "24h") == (
                "Deleted 1 cancellation.\n"
            )
        assert list(Cancellation.objects.all()) == [refused]
        assert refused.items.exists()
        assert f"Cancellation {refused.pk} cannot be written" in caplog.text

    def test_an_error_of_the_database_ends_it(self) -> None:
        self.cancel(2, external_id="")

        def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("DELETE"):
                raise OperationalError("disk full")
            return execute(sql, params, many, context)

        with connection.execute_wrapper(fail), pytest.raises(OperationalError, match="disk full"):
            prune("prune_cancellations", "--older-than", "24h")
        assert Cancellation.objects.count() == 1


class TestPruneRuns:
    def finished(self, days: float, status: str = "completed", **fields: Any) -> Any:
        then = days_ago(days)
        return make_run(status, **{"created_at": then, "finished_at": then, **fields})

    def test_deletes_runs_that_ended_long_ago(self) -> None:
        for status in ("completed", "failed", "terminated", "timed_out"):
            self.finished(31, status)
        self.finished(31, finished_at=None)  # written by the host
        self.finished(31, "cancelled", stop_state="acknowledged")
        kept = {
            self.finished(29),
            self.finished(31, finished_at=days_ago(29)),
            self.finished(31, "running", finished_at=None),
            self.finished(31, "paused", finished_at=None),
            self.finished(31, "cancelled", stop_state="stopping"),
        }
        output = prune("prune_runs", "--older-than", "30d", "--dry-run")
        assert output.startswith("Would delete up to 6 runs")
        assert len(left()) == 11
        assert prune("prune_runs", "--older-than", "30d") == "Deleted 6 runs.\n"
        assert left() == kept

    @pytest.mark.parametrize(
        "unfinished",
        [{"delivery": "pending"}, {"delivery": "failed"}, {"handling": "pending"}],
        ids=str,
    )
    def test_keeps_runs_of_unfinished_items(self, unfinished: dict[str, str]) -> None:
        told, untold = make_run(external_id=""), make_run(external_id="")
        result = cancel_runs(ids([told, untold]), requested_by="x")
        assert result.cancellation
        result.cancellation.items.filter(run_id=untold.run_id).update(**unfinished)
        then = days_ago(31)
        get_run_model()._base_manager.update(
            created_at=then, finished_at=then, stop_state="acknowledged"
        )
        assert prune("prune_runs", "--older-than", "30d") == "Deleted 1 run.\n"
        assert left() == {untold}
        assert result.cancellation.items.count() == 2  # history outlives its subject

    def test_keeps_what_is_above_a_run_that_stays(self) -> None:
        top = self.finished(33)
        middle = self.finished(32, parent=top)
        young = self.finished(1, parent=middle)
        self.finished(32, parent=middle)
        gone = self.finished(40)
        self.finished(40, parent=gone)
        assert prune("prune_runs", "--older-than", "30d") == "Deleted 3 runs.\n"
        assert left() == {top, middle, young}

    def test_children_created_before_their_parents(self, monkeypatch: Any) -> None:
        """A host may write any time of creation, and attach a run later."""
        monkeypatch.setattr(pruning, "batches", in_small_batches)
        parent = None
        for day in range(40, 50):
            parent = self.finished(day, parent=parent)
        assert prune("prune_runs", "--older-than", "30d") == "Deleted 10 runs.\n"
        assert not left()

    def test_deep_and_wide_trees(self) -> None:
        model = get_run_model()
        then = days_ago(40)
        values = {"status": "completed", "created_at": then, "finished_at": then}
        top = model._base_manager.create(**values)
        model._base_manager.bulk_create([model(parent=top, **values) for _ in range(1_200)])
        above = top
        for minute in range(1_200):
            values["created_at"] = then + timedelta(minutes=minute)
            above = model._base_manager.create(parent=above, **values)
        assert prune("prune_runs", "--older-than", "30d") == "Deleted 2,401 runs.\n"

    @pytest.mark.django_db(transaction=True)
    def test_a_run_that_a_trigger_refuses_to_delete_keeps_no_other(self) -> None:
        parent = self.finished(40)
        refused = self.finished(39, parent=parent)
        self.finished(31)
        with refusing(type(refused), f"OLD.run_id = '{refused.run_id}'", "DELETE"):
            assert prune("prune_runs", "--older-than", "30d") == "Deleted 1 run.\n"
        assert left() == {parent, refused}


real_batches = pruning.batches


def in_small_batches(*args: Any, **options: Any) -> Any:
    return real_batches(*args, **{**options, "size": 2})


@pytest.mark.parametrize("command", ["prune_runs", "prune_cancellations"])
def test_interrupt_ends_it_after_a_batch(command: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(pruning, "batches", in_small_batches)
    then = days_ago(40)
    for _ in range(4):
        make_run("completed", created_at=then, finished_at=then)
        cancel_runs(["unknown"], requested_by="x")
    Cancellation.objects.update(requested_at=then)

    def interrupt(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("DELETE") and not stopped:
            stopped.append(sql)
            signal.raise_signal(signal.SIGTERM)
        return execute(sql, params, many, context)

    stopped: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with connection.execute_wrapper(interrupt):
            assert prune(command, "--older-than", "30d").startswith("Deleted 2 ")
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("command", ["prune_runs", "prune_cancellations"])
def test_needs_an_age(command: str) -> None:
    for args in ([], ["--older-than", "0d"], ["--older-than", "long"]):
        with pytest.raises(CommandError):
            prune(command, *args)


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(IS_SQLITE, reason="SQLite has one writer at a time.")
def test_no_deadlock_with_cancellations_of_the_same_runs() -> None:
    run_ids = ids(make_runs(300, "running"))
    errors: list[BaseException] = []
    done = threading.Event()

    def cancel() -> None:
        try:
            for _ in range(20):
                wanted = random.sample(run_ids, 60)
                assert cancel_runs(wanted, requested_by="x").cancelled == wanted
        except BaseException as error:  # noqa: BLE001 - asserted below
            errors.append(error)
        finally:
            connections.close_all()

    def prune_repeatedly() -> None:
        try:
            while not done.is_set():
                CancellationItem.objects.filter(delivery="pending").update(delivery="delivered")
                for _ in pruning.delete_cancellations(pruning.old_cancellations(timedelta(0))):
                    pass
        except BaseException as error:  # noqa: BLE001 - asserted below
            errors.append(error)
        finally:
            connections.close_all()

    deadlocks = count_of_deadlocks()
    workers = [threading.Thread(target=cancel) for _ in range(4)]
    pruner = threading.Thread(target=prune_repeatedly)
    for thread in (*workers, pruner):
        thread.start()
    for thread in workers:
        thread.join(120)
    done.set()
    pruner.join(120)
    assert not errors
    assert count_of_deadlocks() == deadlocks


def count_of_deadlocks() -> int:
    if not IS_POSTGRESQL:
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        count: int = cursor.fetchone()[0]
        return count
