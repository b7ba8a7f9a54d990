"""Force while a delivery worker is at work, or cannot write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from django_run_cancel.backends import StopOutcome
from django_run_cancel.cancellation.force import last_delivery
from django_run_cancel.delivery import deliver_due, outbox
from django_run_cancel.delivery.outbox import DELIVERY
from django_run_cancel.delivery.rotation import Rotation
from django_run_cancel.models import Cancellation, CancellationItem
from django_run_cancel.states import Delivery
from django_run_cancel.testing import DummyBackend
from tests.cancellation.helpers import ask_nicely, force, forces, is_due
from tests.delivery.helpers import cancelled, claim_all, item_of
from tests.helpers import IS_SQLITE, make_run, rows_locked

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("not_looked_yet", "dummy")]


class TestDeliveryAtWork:
    def test_claimed__the_worker_records_nothing(self, dummy: DummyBackend) -> None:
        """A worker tells politely while force is asked for; what it records would undo that."""
        run = cancelled()
        claim = claim_all()
        force(run.run_id)
        told = {"delivery": Delivery.DELIVERED, "force": False, "next_attempt_at": None}
        outbox.record(claim, {item.pk: told for item in claim.items})
        assert is_due(item_of(run))
        assert deliver_due().delivered == 1
        assert forces(dummy) == [True]

    @pytest.fixture
    def force_after_reading(self, monkeypatch: Any) -> Iterator[list[Any]]:
        """Let force be asked for between a worker's look at what is due and its claim."""
        runs: list[Any] = []
        real = Rotation.window

        def window(self: Rotation, rows: Any, limit: int) -> list[Any]:
            found = real(self, rows, limit)
            while runs:
                force(runs.pop().run_id)
            return found

        monkeypatch.setattr(Rotation, "window", window)
        return runs

    def test_asked_for_before_the_claim(
        self, dummy: DummyBackend, force_after_reading: list[Any]
    ) -> None:
        run = cancelled()
        force_after_reading.append(run)
        (item,) = claim_all().items
        assert (item.force, item.attempts) == (True, 1)

    def test_asked_for_before_it_is_given_up(
        self, force_after_reading: list[Any], caplog: Any
    ) -> None:
        run = cancelled()
        CancellationItem.objects.update(attempts=10)
        force_after_reading.append(run)
        outbox.claim_due(DELIVERY, 10)
        assert is_due(item_of(run))
        assert caplog.text == ""

    def test_asked_for_after_the_claim(self, dummy: DummyBackend, monkeypatch: Any) -> None:
        """The claim is void before the worker has read what it has claimed."""
        run = cancelled()
        real = outbox.update_unlocked

        def update_unlocked(rows: Any, **values: Any) -> list[Any]:
            written = real(rows, **values)
            force(run.run_id)
            return written

        monkeypatch.setattr(outbox, "update_unlocked", update_unlocked)
        assert claim_all().items == []
        monkeypatch.undo()
        assert deliver_due().delivered == 1
        assert forces(dummy) == [True]


class TestDeliveryThatCannotBeWritten:
    """Locked by a handler or a worker, or deleted: the item of the new request is told instead."""

    def check(self, dummy: DummyBackend, run: Any, stop_state: str) -> None:
        later = CancellationItem.objects.get(outcome="already_cancelled")
        assert is_due(later)
        assert (later.force, later.handling) == (True, "not_needed")
        assert (later.backend, later.external_id) == ("dummy", "job")
        assert last_delivery(run) == later
        force(run.run_id)  # twice is once
        others = CancellationItem.objects.filter(outcome="already_cancelled").exclude(pk=later.pk)
        assert [item.delivery for item in others] == ["not_needed"]
        dummy.outcome = StopOutcome.STOPPED
        deliver_due()
        assert forces(dummy)[-1]
        run.refresh_from_db()
        assert run.stop_state == stop_state

    @pytest.mark.parametrize(
        ("status", "stop_state"), [("running", "killed"), ("retried", "stopping")]
    )
    @pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
    @pytest.mark.django_db(transaction=True)
    def test_locked(self, dummy: DummyBackend, status: str, stop_state: str) -> None:
        """That the job of a retry is dropped says nothing about the attempt before."""
        run = make_run()
        run.mark_running()
        if status == "retried":
            run.mark_queued()
        ask_nicely(run.run_id)
        deliver_due()
        with rows_locked("django_run_cancel_cancellationitem", "run_id", run.run_id):
            force(run.run_id)  # does not wait
        assert not item_of(run).force
        self.check(dummy, run, stop_state)

    def test_deleted(self, dummy: DummyBackend) -> None:
        run = cancelled()
        Cancellation.objects.all().delete()
        force(run.run_id)
        self.check(dummy, run, "stopping")
