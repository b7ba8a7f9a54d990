"""Handlers of the host: once for each item, and what becomes of one that fails."""

from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import (
    deliver_due,
    handlers,
    outbox,
    retry_deliveries,
    step,
)
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery import helpers
from tests.delivery.helpers import (
    HANDLED,
    Death,
    cancelled,
    claim_all,
    item_of,
    pass_time,
)
from tests.helpers import IS_SQLITE, ids, make_run


def test_handlers__once_even_for_what_never_started(
    dummy: DummyBackend, handled: list[str]
) -> None:
    runs = [cancelled(RunStatus.QUEUED, backend="", external_id=""), cancelled()]
    finished = make_run(RunStatus.COMPLETED)
    cancel_runs([finished.run_id, runs[0].run_id, "unknown"], requested_by="tests")
    assert handled == []
    assert deliver_due().handled == 2
    assert not deliver_due()
    assert sorted(handled) == sorted(ids(runs))
    assert set(CancellationItem.objects.values_list("handling", flat=True)) == {
        "delivered",
        "not_needed",
    }


def test_handlers__at_most_so_many(dummy: DummyBackend, handled: list[str]) -> None:
    for _ in range(3):
        cancelled()
    assert [deliver_due(limit=2).handled, deliver_due(limit=2).handled] == [2, 1]


def test_handlers__all_or_nothing(dummy: DummyBackend, handled: Any, settings: Any) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.book", f"{helpers.__name__}.explode"]
    settings.RUN_CANCEL_MAX_ATTEMPTS = 2
    run = cancelled()
    rows = get_run_model()._default_manager
    for state in ("pending", "failed"):
        report = deliver_due()
        assert (report.handled, report.failed) == (0, 1)
        item = item_of(run)
        assert (item.handling, item.handling_error) == (state, "ValueError: handler is broken")
        assert rows.count() == 1  # what the first handler did is undone
        pass_time(100)
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.book"]
    assert retry_deliveries() == 1
    assert deliver_due().handled == 1
    item = item_of(run)
    assert (item.handling, item.handling_error, rows.count()) == ("delivered", "", 2)


def test_handlers__one_that_fails_holds_nobody_up(
    dummy: DummyBackend, handled: Any, settings: Any
) -> None:
    cancelled()
    settings.RUN_CANCEL_HANDLERS = ["nowhere.handler"]
    assert deliver_due().failed == 1
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.book"]
    cancelled()
    assert deliver_due().handled == 1


def test_handlers__whose_lease_ran_out(dummy: DummyBackend, handled: Any, monkeypatch: Any) -> None:
    """This process was held up after the claim, and another worker has come."""
    real, late = outbox.claim_due, []

    def claim(queue: Any, *args: Any, **lookups: Any) -> Any:
        claim = real(queue, *args, **lookups)
        if queue == outbox.HANDLING and claim and not late:
            late.append(claim)
            claim.rows().update(handling="delivered")
        return claim

    monkeypatch.setattr(outbox, "claim_due", claim)
    cancelled()
    cancelled()
    assert deliver_due().handled == 1
    assert len(handled) == 1


def test_handler_that_catches_an_error_of_the_database(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.swallow"]
    run = cancelled()
    report = deliver_due()
    item = item_of(run)
    assert (report.handled, report.failed) == (0, 1)
    assert (item.handling, item.handling_attempts) == ("pending", 1)
    assert "If a handler caught an error of the database" in item.handling_error
    assert get_run_model()._default_manager.count() == 1


def deadlock(item: CancellationItem) -> None:
    """Catch that the database has undone the transaction, and go on as if it had not."""
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN")
    helpers.book(item)


def test_handler_that_catches_a_deadlock(dummy: DummyBackend, handled: Any, settings: Any) -> None:
    """On MySQL it undoes everything, and what comes after it would be done twice."""
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.deadlock"]
    run = cancelled()
    assert deliver_due().failed == 1
    assert item_of(run).handling == "pending"
    assert "not marked any more" in item_of(run).handling_error
    assert get_run_model()._default_manager.count() == 1
    assert handled == [run.run_id]


CLOCK = SimpleNamespace(now=100.0, monotonic=lambda: CLOCK.now)


def take_time(item: CancellationItem) -> None:
    CLOCK.now += 0.6 * handlers.STEP_SECONDS


def test_handlers__take_no_more_than_their_time(
    dummy: DummyBackend, settings: Any, monkeypatch: Any
) -> None:
    """Executors wait to be told in the meantime."""
    monkeypatch.setattr(handlers, "time", CLOCK)
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.take_time"]
    for _ in range(3):
        cancelled()
    assert [deliver_due().handled for _ in range(3)] == [2, 1, 0]


def handle_slowly(item: CancellationItem) -> None:
    SLOW.wait(120)


SLOW = threading.Event()


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_slow_handler__keeps_no_other_worker_waiting(dummy: DummyBackend, settings: Any) -> None:
    """It has locked its item, which is also due to be told, to be escalated and so on."""
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.handle_slowly"]
    SLOW.clear()
    run = cancelled()
    claim = claim_all()

    def work() -> None:
        handlers.handle_due(1)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    while item_of(run).handling_attempts == 0:
        time.sleep(0.01)
    time.sleep(0.1)
    other = cancelled()
    began = time.monotonic()
    step._deliver(claim, step.DeliveryReport())
    settings.RUN_CANCEL_HANDLERS = []
    assert deliver_due().delivered == 1
    CancellationItem.objects.filter(run_id=other.run_id).update(
        escalates_at=timezone.now() - timedelta(seconds=1)
    )
    assert deliver_due().escalated == 1
    assert time.monotonic() - began < 60
    SLOW.set()
    thread.join()
    assert item_of(run).handling == "delivered"
    assert item_of(run).delivery == "pending"  # told again, after its lease


def leave(item: CancellationItem) -> None:
    """Call something that ends the process, as command line tools do."""
    sys.exit("no licence")


def test_handlers__one_that_exits_has_failed(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.leave"]
    run = cancelled()
    assert deliver_due().failed == 1
    assert (item_of(run).handling, item_of(run).handling_error) == (
        "pending",
        "SystemExit: no licence",
    )


def die(item: CancellationItem) -> None:
    if item.run_id in HANDLED:
        raise Death
    make_run(RunStatus.COMPLETED, title=f"refund of {item.run_id}")


def test_handlers__one_that_kills_the_worker_fails_in_the_end(
    dummy: DummyBackend, handled: list[str], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And costs no other item an attempt."""
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.die"]
    settings.RUN_CANCEL_MAX_ATTEMPTS = 3
    deadly, other = cancelled(), cancelled()
    handled.append(deadly.run_id)
    deaths = 0
    for _ in range(6):
        try:
            deliver_due()
        except Death:
            deaths += 1
        pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
    assert deaths == 3
    assert (item_of(deadly).handling, item_of(deadly).handling_attempts) == ("failed", 3)
    assert item_of(deadly).handling_error == "The worker ended during the last attempt."
    assert (item_of(other).handling, item_of(other).handling_attempts) == ("delivered", 1)
    assert "has failed: The worker ended" in caplog.text
    # One that has no attempt left does not end the step.
    CancellationItem.objects.filter(run_id=deadly.run_id).update(
        handling="pending", next_handling_at=timezone.now() - timedelta(days=1)
    )
    third = cancelled()
    assert deliver_due().handled == 1
    assert [item_of(run).handling for run in (deadly, third)] == ["failed", "delivered"]
    assert retry_deliveries() == 1


def test_no_handlers__nothing_is_pending(dummy: DummyBackend) -> None:
    assert item_of(cancelled()).handling == "not_needed"
