"""Force after a polite cancellation: what still stops is killed, and who asked is recorded."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_run_cancel.backends import StopOutcome
from django_run_cancel.cancellation import record_stopped
from django_run_cancel.cancellation.force import last_delivery, told_by_force
from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import Delivery
from django_run_cancel.testing import DummyBackend
from tests.cancellation.helpers import ask_nicely, force, forces, is_due
from tests.delivery.helpers import cancelled, item_of, pass_time, state_of
from tests.helpers import ids, make_run, make_runs

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("not_looked_yet", "dummy")]


def fail(run: Any, **values: Any) -> None:
    failed = {"delivery": Delivery.FAILED, "attempts": 10, "next_attempt_at": None}
    CancellationItem.objects.filter(pk=item_of(run).pk).update(**failed, **values)


class TestEffect:
    @pytest.mark.parametrize("before", ["pending", "postponed", "delivered", "failed"])
    def test_told_politely_before(self, dummy: DummyBackend, before: str) -> None:
        run = cancelled()
        if before == "postponed":
            dummy.outcome = OSError("away")
            deliver_due()
            assert not is_due(item_of(run))
            dummy.clear()
        elif before == "delivered":
            deliver_due()
            assert item_of(run).escalates_at is not None
        elif before == "failed":
            fail(run, last_error="away")
        dummy.stopped.clear()
        result = force(run.run_id, reason="It does not stop")

        item = item_of(run)
        assert is_due(item)
        assert (item.force, item.attempts, item.escalates_at) == (True, 0, None)
        assert (result.cancelled, result.failed) == ([run.run_id], [])
        assert result.forced == [run.run_id]
        dummy.outcome = StopOutcome.STOPPED
        assert deliver_due().delivered == 1
        assert forces(dummy) == [True]
        assert state_of(run) == ("delivered", "killed")
        assert run.cancellation.requested_by == "tests"

    def test_is_on_record(self) -> None:
        run = cancelled()
        record = force(run.run_id, reason="It does not stop").cancellation
        assert record is not None
        assert (record.requested_by, record.reason, record.force) == (
            "chief",
            "It does not stop",
            True,
        )
        assert (record.total_count, record.cancelled_count, record.cascaded_count) == (1, 1, 0)
        item = record.items.get()  # type: ignore[attr-defined]
        assert (item.run_id, item.outcome, item.via) == (
            run.run_id,
            "already_cancelled",
            "requested",
        )
        assert (item.previous_status, item.delivery, item.force) == (
            "cancelled",
            "not_needed",
            True,
        )
        assert item_of(run).cancellation.requested_by == "tests"

    def test_killed_only_when_the_executor_confirms(self, dummy: DummyBackend) -> None:
        run = cancelled()
        deliver_due()
        force(run.run_id)
        deliver_due()
        assert state_of(run) == ("delivered", "stopping")
        assert forces(dummy) == [False, True]
        pass_time(31)
        assert not deliver_due()  # the grace changes nothing any more

    def test_from_the_instance(self) -> None:
        run = cancelled()
        assert run.cancel(requested_by="chief", force=True).cancelled == [run.run_id]
        assert item_of(run).force

    def test_no_signal_and_no_handler_again(
        self, settings: Any, django_capture_on_commit_callbacks: Any
    ) -> None:
        settings.RUN_CANCEL_HANDLERS = ["tests.delivery.helpers.book"]
        run = cancelled()
        with django_capture_on_commit_callbacks() as callbacks:
            force(run.run_id)
        assert callbacks == []
        pending = CancellationItem.objects.filter(handling=Delivery.PENDING)
        assert [item.pk for item in pending] == [item_of(run).pk]

    def test_dry_run(self) -> None:
        run = cancelled()
        result = force(run.run_id, dry_run=True)
        assert (result.forced, result.cancelled) == ([run.run_id], [run.run_id])
        assert not item_of(run).force
        assert Cancellation.objects.count() == 1

    def test_undone_with_the_transaction(self) -> None:
        run = cancelled()
        with transaction.atomic():
            force(run.run_id)
            transaction.set_rollback(True)
        assert not item_of(run).force
        assert Cancellation.objects.count() == 1

    @pytest.mark.parametrize("asked", ["parent", "both"])
    def test_children(self, asked: str) -> None:
        """As when it had been asked for at first: what is below goes along."""
        parent = make_run("running")
        running, waiting, silent = (parent.create_child(external_id="job") for _ in range(3))
        for child in (running, waiting, silent):
            type(child).objects.filter(pk=child.pk).update(backend="dummy")
        running.mark_running()
        silent.mark_running()
        type(silent).objects.filter(pk=silent.pk).update(external_id="")
        ask_nicely(parent.run_id)
        born = get_run_model()._default_manager.create(
            parent=parent, status="running", backend="dummy", external_id="job"
        )
        result = force(*[parent.run_id, running.run_id][: 1 if asked == "parent" else 2])
        assert sorted(result.forced) == sorted([parent.run_id, running.run_id])
        forced = {item.run_id for item in CancellationItem.objects.all() if is_forced(item)}
        assert forced == {parent.run_id, running.run_id, born.run_id}
        record = result.cancellation
        assert record is not None
        assert record.cascaded_count == 1  # cancelled with it; the others were before
        outcomes = {item.run_id: (item.outcome, item.via) for item in result.items}
        via = "cascade" if asked == "parent" else "requested"
        assert outcomes == {
            parent.run_id: ("already_cancelled", "requested"),
            running.run_id: ("already_cancelled", via),
            born.run_id: ("cancelled", "cascade"),
        }
        assert CancellationItem.objects.filter(cancellation=record).count() == 3

    def test_statements_do_not_grow(self) -> None:
        counts = []
        for number in (1, 100):
            run_ids = ids(make_runs(number, "running"))
            ask_nicely(*run_ids)
            with CaptureQueriesContext(connection) as captured:
                assert len(force(*run_ids).forced) == number
            counts.append(len(captured))
        assert counts[0] == counts[1] < 13

    def test_more_than_one_list(self, monkeypatch: Any) -> None:
        monkeypatch.setattr("django_run_cancel.cancellation.force.MAX_LISTED_ON_MYSQL", 2)
        runs = make_runs(5, "running")
        ask_nicely(*ids(runs))
        force(*ids(runs))
        assert all(item_of(run).force for run in runs)


def is_forced(item: CancellationItem) -> bool:
    return item.force and item.delivery == Delivery.PENDING


class TestNoEffect:
    def test_without_force(self) -> None:
        run = cancelled()
        deliver_due()
        before = CancellationItem.objects.filter(pk=item_of(run).pk).values().get()
        assert ask_nicely(run.run_id).forced == []
        assert CancellationItem.objects.filter(pk=item_of(run).pk).values().get() == before

    def test_twice(self, dummy: DummyBackend) -> None:
        run = cancelled()
        deliver_due()
        for _ in range(2):
            force(run.run_id)
        assert deliver_due().delivered == 1
        force(run.run_id)
        assert not deliver_due()
        assert forces(dummy) == [False, True]
        assert Cancellation.objects.filter(requested_by="chief").count() == 3

    def test_asked_for_at_first(self, dummy: DummyBackend) -> None:
        run = cancelled(force=True)
        deliver_due()
        force(run.run_id)
        assert not deliver_due()

    def test_while_it_waits_to_be_repeated(self, dummy: DummyBackend) -> None:
        run = cancelled(force=True)
        dummy.outcome = StopOutcome.TOLD_ONCE
        deliver_due()
        before = item_of(run).next_attempt_at
        force(run.run_id)
        assert item_of(run).next_attempt_at == before

    def test_failed_by_force__is_tried_again(self) -> None:
        run = cancelled(force=True)
        fail(run)
        force(run.run_id)
        assert is_due(item_of(run))

    @pytest.mark.parametrize("how", ["acknowledged", "killed", "presumed"])
    def test_has_stopped(self, dummy: DummyBackend, how: str) -> None:
        run = cancelled()
        deliver_due()
        record_stopped([run.run_id], how)
        result = force(run.run_id)
        assert (result.cancelled, result.forced) == ([run.run_id], [])
        assert not deliver_due()
        assert state_of(run) == ("delivered", how)

    def test_never_started(self, dummy: DummyBackend) -> None:
        run = cancelled("queued")
        assert force(run.run_id).forced == []
        assert not item_of(run).force

    def test_finished_and_unknown(self) -> None:
        run = make_run("completed")
        result = force(run.run_id, "tsk_unknown")
        assert (result.failed, result.forced) == ([run.run_id, "tsk_unknown"], [])
        assert not CancellationItem.objects.exclude(delivery="not_needed").exists()

    def test_without_an_executor(self) -> None:
        run = cancelled(external_id="")
        assert force(run.run_id).forced == []
        assert last_delivery(run) is None
        assert not deliver_due()

    def test_of_somebody_else(self) -> None:
        ours, theirs = cancelled(tenant="ours"), cancelled(tenant="theirs")
        scope = get_run_model()._default_manager.filter(tenant="ours")
        result = force(ours.run_id, theirs.run_id, runs=scope)
        assert (result.cancelled, result.failed) == ([ours.run_id], [theirs.run_id])
        assert (item_of(ours).force, item_of(theirs).force) == (True, False)

    def test_replay(self) -> None:
        run = cancelled()
        first = force(run.run_id, idempotency_key="key")
        CancellationItem.objects.update(force=False)
        again = force(run.run_id, idempotency_key="key")
        assert (again.is_replay, again) == (True, first)
        assert not item_of(run).force

    def test_earlier_run_with_the_same_id(self) -> None:
        gone = cancelled(run_id="tsk_mine", external_id="old")
        gone.delete()
        run = cancelled(run_id="tsk_mine", external_id="new")
        force(run.run_id)
        items = CancellationItem.objects.filter(outcome="cancelled")
        assert dict(items.values_list("external_id", "force")) == {"old": False, "new": True}


@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize("delivery", Delivery)
def test_told_by_force(delivery: Delivery, is_forced: bool) -> None:
    item = item_of(cancelled(force=is_forced))
    CancellationItem.objects.update(delivery=delivery)
    is_told = is_forced and delivery in {Delivery.PENDING, Delivery.DELIVERED}
    assert list(told_by_force()) == ([item] if is_told else [])
