from __future__ import annotations

import re
import time
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import DatabaseError, IntegrityError, connection, transaction

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.exceptions import RunCancelled, StateNotWritable
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.models import ids as run_ids
from django_run_cancel.states import STATE_WORDS, RunStatus, StopState
from tests.helpers import IS_POSTGRESQL, make_run, statuses

pytestmark = pytest.mark.django_db


def reread(run: Any) -> Any:
    return type(run)._default_manager.get(pk=run.pk)


class TestIds:
    def test_prefix_follows_the_type(self) -> None:
        assert re.fullmatch(r"tsk_[0-9a-f]{32}", make_run(run_type="task").run_id)
        assert re.fullmatch(r"wr_[0-9a-f]{32}", make_run(run_type="workflow").run_id)

    def test_prefix_of_other_types(self, settings: Any) -> None:
        assert make_run(run_type="training").run_id.startswith("run_")
        settings.RUN_CANCEL_ID_PREFIXES = {"training": "trn_", "task": "t_"}
        assert make_run(run_type="training").run_id.startswith("trn_")
        assert make_run(run_type="task").run_id.startswith("t_")

    def test_given_id_is_kept(self) -> None:
        assert make_run(run_id="mine").run_id == "mine"

    def test_bulk_create_generates_too(self) -> None:
        model = get_run_model()
        runs = model._default_manager.bulk_create([model(), model()])
        assert len({run.run_id for run in runs} - {""}) == 2

    def test_layout_is_that_of_a_uuid7(self) -> None:
        before = time.time_ns() // 1_000_000
        text = run_ids.uuid7_hex()
        after = time.time_ns() // 1_000_000
        assert before <= int(text[:12], 16) <= after
        assert text[12] == "7"
        assert text[16] in "89ab"

    def test_time_ordered(self) -> None:
        made = []
        for _ in range(50):
            made.append(run_ids.uuid7_hex())
            time.sleep(0.000_01)
        assert made == sorted(made)
        assert len(set(made)) == 50

    def test_unique(self) -> None:
        make_run(run_id="mine")
        with pytest.raises(IntegrityError), transaction.atomic():
            make_run(run_id="mine")

    @pytest.mark.parametrize("other", ["TSK_1", "tsk_1 ", "tsk_1\t", "tśk_1"])
    def test_compared_byte_for_byte(self, other: str) -> None:
        manager = get_run_model()._default_manager
        make_run(run_id="tsk_1", tenant="acme")
        assert not manager.filter(run_id=other).exists()
        make_run(run_id=other, tenant="ACME")
        assert manager.filter(run_id="tsk_1").count() == 1
        assert manager.filter(tenant="acme").count() == 1

    @pytest.mark.parametrize(
        ("text", "storable"),
        [("", True), ("é" * 64, True), ("x" * 65, False), ("a\0b", False), ("\ud800", False)],
    )
    def test_is_storable(self, text: str, storable: bool) -> None:
        assert run_ids.is_storable(text, 64) is storable

    if IS_POSTGRESQL:

        def test_one_index_serves_equality_and_prefix(self) -> None:
            table = get_run_model()._meta.db_table
            with connection.cursor() as cursor:
                cursor.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", [table])
                on_run_id = [sql for (sql,) in cursor if "(run_id" in sql]
                cursor.execute("SET enable_seqscan = off")
                cursor.execute(f"EXPLAIN SELECT 1 FROM {table} WHERE run_id LIKE 'tsk_01%'")
                conditions = [line for (line,) in cursor if "Index Cond" in line]
            assert len(on_run_id) == 1
            assert conditions
            assert all("run_id" in line for line in conditions)


class TestSave:
    def test_does_not_resurrect(self) -> None:
        stale = make_run(RunStatus.RUNNING)
        cancel_runs([stale.run_id], requested_by="operator")
        stale.title = "renamed"
        stale.save()
        found = reread(stale)
        assert found.title == "renamed"
        assert found.status == RunStatus.CANCELLED
        assert found.cancellation is not None
        assert found.stop_state == "stopping"
        assert found.finished_at is not None

    @pytest.mark.parametrize(
        "field",
        [
            "status",
            "queued_at",
            "started_at",
            "finished_at",
            "heartbeat_at",
            "execution_id",
            "failure_reason",
            "cancellation",
            "cancellation_id",
            "stop_state",
            "stopped_at",
        ],
    )
    def test_refuses_to_write_state(self, field: str) -> None:
        run = make_run()
        with pytest.raises(StateNotWritable, match=f"does not write {field} of"):
            run.save(update_fields=["title", field])

    def test_writes_the_fields_named(self) -> None:
        run = make_run(title="old")
        run.title, run.metadata = "new", {"changed": True}
        run.save(update_fields=["title"])
        found = reread(run)
        assert (found.title, found.metadata) == ("new", {})

    def test_of_a_copy_does_not_overwrite(self) -> None:
        run = make_run()
        cancel_runs([run.run_id], requested_by="operator")
        copy = get_run_model()(pk=run.pk, run_id=run.run_id, status=RunStatus.RUNNING)
        with pytest.raises(IntegrityError), transaction.atomic():
            copy.save()
        assert statuses(run) == [RunStatus.CANCELLED]

    def test_of_a_deleted_run_does_not_bring_it_back(self) -> None:
        run = make_run()
        get_run_model()._default_manager.filter(pk=run.pk).delete()
        with pytest.raises(DatabaseError), transaction.atomic():
            run.save()

    def test_leaves_deferred_fields_alone(self) -> None:
        run = make_run(title="kept", metadata={"a": 1})
        partial = get_run_model()._default_manager.only("metadata").get(pk=run.pk)
        partial.metadata = {"b": 2}
        get_run_model()._default_manager.filter(pk=run.pk).update(title="changed meanwhile")
        partial.save()
        found = reread(run)
        assert (found.title, found.metadata) == ("changed meanwhile", {"b": 2})


class TestStatusOfANewRun:
    @pytest.mark.parametrize("status", ["foo", "", None, "Running", ["created"], 5])
    def test_refused(self, status: Any) -> None:
        model = get_run_model()
        refused = pytest.raises(
            ValueError, match=r"status must be one of created, queued, .*, not "
        )
        with refused, transaction.atomic():
            model._default_manager.create(status=status)
        with refused, transaction.atomic():
            model._default_manager.bulk_create([model(status=status)])
        assert not model._default_manager.exists()

    @pytest.mark.parametrize("status", [*RunStatus, "running"])
    def test_taken(self, status: str) -> None:
        assert statuses(make_run(status)) == [status]

    def test_is_no_condition_of_other_writes(self) -> None:
        run = make_run()
        run._rows().update(status="archived")
        run.refresh_from_db()
        run.title = "renamed"
        run.save()
        assert get_run_model()._default_manager.filter(status="archived").get() == run


class TestCancel:
    def test_cancels_and_updates_the_instance(self) -> None:
        run = make_run(RunStatus.RUNNING)
        child = run.create_child(status=RunStatus.QUEUED)
        result = run.cancel(requested_by="operator", reason="Disk full", force=True)
        assert result.cancelled == [run.run_id]
        assert statuses(run, child) == [RunStatus.CANCELLED] * 2
        assert (run.status, run.stop_state) == ("cancelled", "stopping")
        assert run.cancellation == result.cancellation == Cancellation.objects.get()
        assert run.finished_at is not None
        assert (run.cancellation.requested_by, run.cancellation.reason) == ("operator", "Disk full")
        assert run.cancellation.force

    def test_leaves_other_changes_of_the_instance(self) -> None:
        run = make_run(title="old")
        run.title = "new"
        run.cancel(requested_by="operator")
        run.save()
        assert reread(run).title == "new"
        assert reread(run).status == RunStatus.CANCELLED

    def test_has_finished(self) -> None:
        run = make_run(RunStatus.RUNNING)
        reread(run).mark_completed()
        assert run.cancel(requested_by="operator").failed == [run.run_id]
        assert run.status == RunStatus.COMPLETED

    def test_is_gone(self) -> None:
        run = make_run()
        get_run_model()._default_manager.filter(pk=run.pk).delete()
        assert run.cancel(requested_by="operator").failed == [run.run_id]

    def test_by_nobody(self) -> None:
        run = make_run()
        with pytest.raises(ValueError, match="requested_by"):
            run.cancel(requested_by=AnonymousUser())
        assert statuses(run) == [RunStatus.QUEUED]


class TestCreateChild:
    def test_belongs_to_its_parent(self) -> None:
        parent = make_run(tenant="acme")
        child = parent.create_child(title="page 1", run_type="task")
        assert (child.parent, child.tenant, child.title) == (parent, "acme", "page 1")
        assert list(parent.children.all()) == [child]

    @pytest.mark.parametrize("field", ["tenant", "parent"])
    def test_takes_neither_owner_nor_parent(self, field: str) -> None:
        with pytest.raises(TypeError, match=field):
            make_run().create_child(**{field: None})

    def test_refused_below_a_cancelled_run(self) -> None:
        parent = make_run()
        cancel_runs([parent.run_id], requested_by="operator")
        with pytest.raises(RunCancelled) as caught:
            parent.create_child()
        assert caught.value.run_id == parent.run_id
        assert not parent.children.exists()

    def test_refused_below_a_finished_run_of_a_cancelled_one(self) -> None:
        top = make_run(RunStatus.RUNNING)
        middle = top.create_child(status=RunStatus.RUNNING)
        middle.mark_completed()
        cancel_runs([top.run_id], requested_by="operator")
        with pytest.raises(RunCancelled):
            middle.create_child()

    def test_allowed_below_a_finished_run(self) -> None:
        parent = make_run(RunStatus.RUNNING)
        parent.mark_completed()
        assert parent.create_child().parent == parent

    def test_parent_is_gone(self) -> None:
        parent = make_run()
        get_run_model()._default_manager.filter(pk=parent.pk).delete()
        with pytest.raises(get_run_model().DoesNotExist):
            parent.create_child()


class TestQuerySet:
    def test_active_and_terminal(self) -> None:
        runs = {status: make_run(status) for status in RunStatus}
        active = set(get_run_model()._default_manager.active())
        assert active == {runs[status] for status in ("created", "queued", "running", "paused")}
        assert set(get_run_model()._default_manager.terminal()) == set(runs.values()) - active


class TestNames:
    @pytest.mark.parametrize("status", sorted(set(RunStatus) - {RunStatus.CANCELLED}))
    def test_state_words__not_cancelled(self, status: RunStatus) -> None:
        assert make_run(status).state_words == status.label
        # Whatever the row says of a stop: only cancelled runs stop.
        assert make_run(status, stop_state="stopping").state_words == status.label

    @pytest.mark.parametrize("stop_state", StopState)
    def test_state_words__cancelled(self, stop_state: StopState) -> None:
        run = make_run(RunStatus.CANCELLED, stop_state=stop_state)
        assert run.state_words == STATE_WORDS[stop_state]

    def test_state_words__cancelled_without_evidence(self) -> None:
        assert make_run(RunStatus.CANCELLED).state_words == "cancelled, stopping"

    def test_run(self) -> None:
        assert str(make_run(title="Import")) == "Import"
        assert str(make_run(run_id="tsk_1")) == "tsk_1"

    def test_record(self) -> None:
        record = cancel_runs(["nope"], requested_by="operator").cancellation
        assert isinstance(record, Cancellation)
        assert str(record) == record.cancellation_id
        assert re.fullmatch(r"can_[0-9a-f]{32}", str(record))
        assert str(CancellationItem.objects.get()) == "nope: not found"
