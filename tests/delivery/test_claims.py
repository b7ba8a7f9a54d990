"""Claims: which items are taken, in which order, and what is kept when one is given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_run_cancel.delivery import deliver_due, outbox
from django_run_cancel.delivery.outbox import DELIVERY, HANDLING, claim_abandoned, claim_due, jitter
from django_run_cancel.models import CancellationItem
from django_run_cancel.testing import DummyBackend
from tests.delivery import helpers
from tests.delivery.helpers import cancelled, claim_all, item_of, pass_time
from tests.helpers import IS_SQLITE, rows_locked

CLAIM_SECONDS = outbox.CLAIM_DURATION.total_seconds()

TABLE = CancellationItem._meta.db_table


@pytest.fixture(autouse=True)
def _fresh_positions() -> Iterator[None]:
    outbox._rotations.clear()
    yield
    outbox._rotations.clear()


def claimed(claim: outbox.Claim | None) -> list[str]:
    assert claim is not None
    return [item.run_id for item in claim.items]


@pytest.mark.parametrize("queue", [DELIVERY, HANDLING], ids=lambda queue: queue.state)
def test_longest_due_first(dummy: DummyBackend, handled: Any, queue: outbox.Queue) -> None:
    runs = [cancelled() for _ in range(3)]
    for hours, run in enumerate(runs, 1):
        due = timezone.now() - timedelta(hours=hours)
        CancellationItem.objects.filter(run_id=run.run_id).update(**{queue.due: due})
    longest_first = [run.run_id for run in reversed(runs)]
    assert claimed(claim_due(queue, 1)) == longest_first[:1]
    assert claimed(claim_due(queue, 5)) == longest_first[1:]
    assert claim_due(queue, 5) is None


def test_abandoned__longest_first_and_one_at_a_time(dummy: DummyBackend) -> None:
    runs = [cancelled() for _ in range(2)]
    claim_all()
    for hours, run in enumerate(runs, 1):
        until = timezone.now() - timedelta(hours=hours)
        CancellationItem.objects.filter(run_id=run.run_id).update(claimed_until=until)
    assert claimed(claim_abandoned(DELIVERY)) == [runs[1].run_id]
    assert claimed(claim_abandoned(DELIVERY)) == [runs[0].run_id]
    assert claim_abandoned(DELIVERY) is None


def test_claim_that_holds__is_not_abandoned(dummy: DummyBackend) -> None:
    cancelled()
    claim_all()
    pass_time(CLAIM_SECONDS / 2)
    assert claim_abandoned(DELIVERY) is None
    pass_time(CLAIM_SECONDS / 2)
    assert claim_abandoned(DELIVERY) is not None


def test_recorded_failure__ends_the_claim(dummy: DummyBackend) -> None:
    """With the time of a claim that has ended, the item would be repeated before it is due."""
    run = cancelled()
    dummy.outcome = OSError("broker is away")
    assert deliver_due().failed == 1
    item = item_of(run)
    assert (item.delivery, item.claimed_by, item.claimed_until) == ("pending", None, None)


@pytest.mark.parametrize("is_claimed", [False, True])
def test_backends_to_claim_for(dummy: DummyBackend, is_claimed: bool) -> None:
    cancelled()
    assert outbox.aliases_with_due_items() == ["dummy"]
    if is_claimed:
        claim_all()
    else:
        CancellationItem.objects.update(next_attempt_at=timezone.now() + timedelta(hours=1))
    assert outbox.aliases_with_due_items() == []


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_locked_item__is_passed_without_waiting(dummy: DummyBackend) -> None:
    held, other = cancelled(), cancelled()
    timeout = "lock_timeout = '500ms'"
    if connection.vendor == "mysql":
        timeout = "SESSION innodb_lock_wait_timeout = 1"
    with connection.cursor() as cursor:
        cursor.execute(f"SET {timeout}")
    try:
        with rows_locked(TABLE, "run_id", held.run_id):
            assert claimed(claim_due(DELIVERY, 5)) == [other.run_id]
            assert claim_due(DELIVERY, 5) is None
    finally:
        connection.close()  # and with it the timeout
    assert claimed(claim_due(DELIVERY, 5)) == [held.run_id]


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_item_locked_for_a_moment__is_recorded(
    dummy: DummyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the executor would be told again, when the claim has expired."""
    runs = [cancelled(), cancelled()]
    claim = claim_due(DELIVERY, 5)
    assert claim is not None
    with ExitStack() as locks:
        locks.enter_context(rows_locked(TABLE, "run_id", runs[1].run_id))
        pauses = SimpleNamespace(sleep=lambda seconds: locks.close())
        monkeypatch.setattr(outbox, "time", pauses)
        outbox.record(claim, {item.pk: {"delivery": "delivered"} for item in claim.items})
    items = [item_of(run) for run in runs]
    assert [(item.delivery, item.claimed_by) for item in items] == [("delivered", None)] * 2


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_item_that_is_kept_locked__is_waited_for_less_than_a_second(
    dummy: DummyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other items wait to be told in the meantime."""
    run = cancelled()
    claim = claim_all()
    pauses: list[float] = []
    monkeypatch.setattr(outbox, "time", SimpleNamespace(sleep=pauses.append))
    with rows_locked(TABLE, "run_id", run.run_id):
        outbox.record(claim, {item.pk: {"delivery": "delivered"} for item in claim.items})
    assert item_of(run).delivery == "pending"
    assert len(pauses) > 1
    assert min(pauses) >= 0
    assert sum(pauses) < 1


def test_item_that_another_worker_has_claimed_since__is_not_waited_for(
    dummy: DummyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cancelled()
    claim = claim_all()
    pass_time(CLAIM_SECONDS + 1)
    assert claim_abandoned(DELIVERY) is not None
    pauses: list[float] = []
    monkeypatch.setattr(outbox, "time", SimpleNamespace(sleep=pauses.append))
    outbox.record(claim, {item.pk: {"delivery": "delivered"} for item in claim.items})
    assert (item_of(run).delivery, pauses) == ("pending", [])


def test_given_up__keeps_the_earlier_error(
    dummy: DummyBackend, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It says more than that the worker has ended."""
    settings.RUN_CANCEL_MAX_ATTEMPTS = 2
    run = cancelled()
    dummy.outcome = OSError("broker is away")
    assert deliver_due().failed == 1
    pass_time(60)
    claim_all()  # and ends
    pass_time(CLAIM_SECONDS + 1)
    assert claim_abandoned(DELIVERY) is not None
    item = item_of(run)
    assert (item.delivery, item.last_error) == ("failed", "OSError: broker is away")
    assert (item.next_attempt_at, item.claimed_by, item.claimed_until) == (None, None, None)
    assert f"delivery of {run.run_id} has failed: OSError: broker is away" in caplog.text


def test_handler_that_fails__is_repeated_within_the_hour(
    dummy: DummyBackend, settings: Any
) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 1000
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.explode"]
    run = cancelled()
    CancellationItem.objects.update(handling_attempts=500)
    before = timezone.now()
    assert deliver_due().failed == 1
    due, after = item_of(run).next_handling_at, timezone.now()
    assert due is not None
    assert before + timedelta(minutes=30) <= due <= after + timedelta(hours=1, seconds=1)


def test_jitter__is_half_of_the_time_to_all_of_it() -> None:
    waits = [jitter(timedelta(seconds=100)).total_seconds() for _ in range(1000)]
    assert 50 <= min(waits) < 60
    assert 90 < max(waits) <= 100
