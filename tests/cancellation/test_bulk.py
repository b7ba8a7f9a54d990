"""Bulk cancellations: selecting runs by ids and filters, starting, and previewing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.cancellation import bulk, preview_bulk_cancellation, start_bulk_cancellation
from django_run_cancel.cancellation.filters import filter_runs
from django_run_cancel.exceptions import IdempotencyKeyReused
from django_run_cancel.models import Cancellation, CancellationChunk, CancellationItem
from tests.cancellation.helpers import RUN, counts, finish, start
from tests.helpers import ids, make_run, make_runs, statuses


@pytest.mark.django_db
class TestSelection:
    def test_active_runs(self) -> None:
        runs = make_runs(25)
        done = make_run("completed")
        record = start(selection={"filter": {"status": ["queued"]}})
        assert (record.state, record.total_count) == ("pending", 25)
        assert set(statuses(*runs)) == {"queued"}
        later = make_run()
        finish(record)
        assert (record.state, counts(record)) == ("completed", (25, 25, 0, 0, 0))
        assert set(statuses(*runs)) == {"cancelled"}
        assert statuses(done, later) == ["completed", "queued"]
        assert record.selection == {"filter": {"status": ["queued"]}}
        assert record.items.count() == 25
        assert record.finished_at is not None

    def test_ids(self) -> None:
        run, foreign = make_run(tenant="acme"), make_run(tenant="other")
        before, done = make_run("cancelled", tenant="acme"), make_run("failed", tenant="acme")
        asked = [run.run_id, "unknown", foreign.run_id, "\0", before.run_id, done.run_id]
        record = start(runs=RUN._base_manager.filter(tenant="acme"), run_ids=asked + asked)
        finish(record)
        assert counts(record) == (6, 2, 1, 4, 0)
        outcomes = list(record.items.order_by("pk").values_list("run_id", "outcome"))
        assert outcomes == [
            (run.run_id, "cancelled"),
            ("unknown", "not_found"),
            (foreign.run_id, "not_found"),
            ("\\x00…", "not_found"),
            (before.run_id, "already_cancelled"),
            (done.run_id, "already_finished"),
        ]
        assert statuses(foreign) == ["queued"]
        assert record.selection == {"run_ids": 6}


@pytest.mark.django_db(transaction=True)
class TestUnusualQuerysets:
    def test_join_that_repeats_runs(self) -> None:
        parent = make_run("running")
        make_runs(3, parent=parent)
        runs = RUN._base_manager.filter(children__status="queued")
        assert preview_bulk_cancellation(runs, requested_by="tests").count == 1
        record = finish(start(runs=runs))
        assert counts(record) == (1, 1, 0, 0, 3)
        assert record.items.filter(via="requested").count() == 1

    def test_that_would_lock(self) -> None:
        """Its locks would need a transaction, and last until all ids are stored."""
        runs = RUN._base_manager.select_for_update()
        run = make_run()
        assert preview_bulk_cancellation(runs, requested_by="tests").count == 1
        with CaptureQueriesContext(connection) as queries:
            record = start(runs=runs)
        assert not any("FOR UPDATE" in query["sql"] for query in queries)
        finish(record)
        assert statuses(run) == ["cancelled"]


@pytest.mark.django_db
class TestFilters:
    def test_each(self) -> None:
        now = timezone.now()
        hour = timedelta(hours=1)
        parent = make_run("running", tenant="acme", started_at=now - hour)
        child = parent.create_child(status="queued", title="Crawl", metadata={"a__b": 1, "c": "x"})
        below = child.create_child(backend="rq", run_type="crawl")
        below.__class__._base_manager.filter(pk=below.pk).update(created_at=now - 2 * hour)
        for filters, expected in {
            "status": ({"status": ["queued", "paused"]}, [child]),
            "type": ({"type": "crawl"}, [below]),
            "tenant": ({"tenant": "acme"}, [parent, child, below]),
            "parent": ({"parent": parent.run_id}, [child]),
            "ancestor": ({"ancestor": parent.run_id}, [child, below]),
            "backend": ({"backend": "rq"}, [below]),
            "title": ({"title": "Crawl"}, [child]),
            "created after": ({"created_after": now - hour}, [parent, child]),
            "created before": ({"created_before": now - hour}, [below]),
            "started after": ({"started_after": now - 2 * hour}, [parent]),
            "started before": ({"started_before": now - 2 * hour}, []),
            "metadata": ({"metadata": {"a__b": 1, "c": "x"}}, [child]),
            "other metadata": ({"metadata": {"a__b": 1, "c": "y"}}, []),
            "several": ({"tenant": "acme", "status": ["running"]}, [parent]),
        }.values():
            found = list(filter_runs(RUN._base_manager.all(), filters))
            assert len(found) == len(expected), filters
            assert set(found) == set(expected), filters

    def test_none(self) -> None:
        with pytest.raises(ValueError, match="at least one filter"):
            filter_runs(RUN._base_manager.all(), {})
        with pytest.raises(KeyError, match="pk"):
            filter_runs(RUN._base_manager.all(), {"pk": 1})

    @pytest.mark.parametrize("key", ["", "0", "-1", '"', 'a"b', "-", "-a"])
    def test_key_that_not_every_database_can_look_for(self, key: str) -> None:
        with pytest.raises(ValueError, match="cannot be found by the key"):
            filter_runs(RUN._base_manager.all(), {"metadata": {"a": 1, key: 1}})

    def test_below_nothing(self) -> None:
        nothing = RUN._base_manager.none()
        assert not filter_runs(nothing, {"ancestor": "tsk_1"}).exists()


@pytest.mark.django_db
class TestStarting:
    def test_repeated(self) -> None:
        runs = make_runs(2)
        first = start(idempotency_key="a", selection={"filter": {"type": "task"}})
        again = start_bulk_cancellation(
            RUN._base_manager.all(),
            requested_by="tests",
            idempotency_key="a",
            selection={"filter": {"type": "task"}},
        )
        assert (again.cancellation, again.is_replay) == (first, True)
        assert str(CancellationChunk.objects.get()) == "cancel them, as asked for: 2"
        finish(first)
        assert first.items.count() == len(runs)
        for other in ({"selection": {"filter": {"type": "crawl"}}}, {"run_ids": ids(runs)}):
            with pytest.raises(IdempotencyKeyReused):
                start(idempotency_key="a", **other)

    def test_nothing_is_selected(self) -> None:
        make_run("completed")
        record = start()
        assert (record.state, record.total_count) == ("completed", 0)
        assert not CancellationChunk.objects.exists()
        assert start(run_ids=[]).state == "completed"

    def test_wrong_ids(self) -> None:
        with pytest.raises(TypeError, match="not a single string"):
            start(run_ids="tsk_1")
        with pytest.raises(TypeError, match="not int"):
            start(run_ids=["tsk_1", 1])
        assert not Cancellation.objects.exists()

    def test_runs_of_another_model(self) -> None:
        with pytest.raises(TypeError, match="runs must be a queryset of"):
            start(runs=CancellationItem.objects.all(), run_ids=["tsk_1"])
        assert not Cancellation.objects.exists()

    def test_in_batches(self) -> None:
        runs = make_runs(7)
        assert sorted(bulk.selected_ids(RUN._base_manager.all(), 3)) == sorted(ids(runs))


@pytest.mark.django_db
class TestPreview:
    def test_filter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk, "PREVIEW_LIMIT", 30)
        parent = make_run()
        parent.create_child()
        make_run("completed")
        runs = RUN._base_manager.filter(parent=None)
        preview = preview_bulk_cancellation(runs, requested_by="tests")
        assert (preview.count, preview.is_capped) == (1, False)
        assert [(item.outcome, item.via) for item in preview.sample.items] == [
            ("cancelled", "requested"),
            ("cancelled", "cascade"),
        ]
        make_runs(30)
        preview = preview_bulk_cancellation(runs, requested_by="tests")
        assert (preview.count, preview.is_capped) == (30, True)
        assert len(preview.sample.cancelled) == bulk.SAMPLE_SIZE
        assert not Cancellation.objects.exists()
        assert not RUN._base_manager.filter(status="cancelled").exists()

    def test_ids(self) -> None:
        run = make_run()
        preview = preview_bulk_cancellation(
            RUN._base_manager.all(), run_ids=[run.run_id, "unknown"], requested_by="tests"
        )
        assert (preview.count, preview.is_capped) == (2, False)
        assert preview.sample.failed == ["unknown"]
