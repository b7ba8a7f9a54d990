"""Deliveries that fail: recorded, logged, repeated, and in nobody else's way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.backends import StopOutcome
from django_run_cancel.db.batches import batches
from django_run_cancel.db.clock import database_now
from django_run_cancel.delivery import (
    deliver_due,
    dispatch,
    outbox,
    retry_deliveries,
)
from django_run_cancel.delivery.outbox import queue_size
from django_run_cancel.models import CancellationItem
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery import helpers
from tests.delivery.helpers import (
    cancelled,
    item_of,
    look_again,
    pass_time,
    state_of,
)
from tests.helpers import make_run, unwritable


def test_executor_away__told_when_it_is_back(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = OSError("broker is away")
    for attempts in range(1, 4):
        assert deliver_due().failed == 1
        item = item_of(run)
        assert (item.delivery, item.attempts) == ("pending", attempts)
        assert item.last_error == "OSError: broker is away"
        wait = (item.next_attempt_at - timezone.now()).total_seconds()  # type: ignore[operator]
        assert 2**attempts / 2 - 1 < wait <= 2**attempts
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    dummy.clear()
    assert deliver_due().delivered == 1
    assert (item_of(run).delivery, item_of(run).last_error) == ("delivered", "")


def test_error_that_no_database_can_store(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = OSError("\0 \ud800 é")
    assert deliver_due().failed == 1
    assert item_of(run).last_error == "OSError:  \\ud800 é"


def test_error_with_the_password_of_a_broker(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = OSError("cannot reach amqp://guest:secret@broker:5672/a@b")
    assert deliver_due().failed == 1
    assert item_of(run).last_error == "OSError: cannot reach amqp://…@broker:5672/a@b"
    # Also where a long one is cut.
    dummy.outcome = OSError("x" * 975 + " amqp://guest:secret@broker")
    pass_time(60)
    assert deliver_due().failed == 1
    assert item_of(run).last_error.endswith("x amqp://…@broker")


@pytest.mark.parametrize("password", ["S3CRET", "ss-S3CR@T", "S3CR:ET"])
def test_error_with_a_password__in_no_log_either(
    dummy: DummyBackend, password: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 1
    run = cancelled()
    dummy.outcome = OSError(f"cannot reach amqp://guest:{password}@broker:5672//")
    deliver_due()
    dispatch(make_run(RunStatus.CREATED), "dummy")
    assert "S3CR" not in item_of(run).last_error
    assert "S3CR" not in caplog.text
    assert caplog.text.count("amqp://…@broker:5672//") == 2


def test_log__says_where_it_came_from_at_the_first_attempt_and_the_last(
    dummy: DummyBackend, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 3
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.explode"]
    cancelled(backend="", external_id="")
    for _ in range(3):
        deliver_due()
        pass_time(100)
    assert ["Traceback" in record.message for record in caplog.records] == [True, False, True]


def test_log__of_an_endless_error_is_its_end(dummy: DummyBackend, caplog: Any) -> None:
    cancelled()
    dummy.outcome = OSError("x" * 1_000_000 + " password=hunter2 and this is the end")
    deliver_due()
    (record,) = caplog.records
    assert len(record.message) < 2 * outbox.MAX_LOG_LENGTH
    assert record.message.endswith("password=… and this is the end")


def test_log__of_a_long_error_is_not_cut_in_a_password(dummy: DummyBackend, caplog: Any) -> None:
    """What is left of one would not be recognised."""
    cancelled()
    rest = "y" * (outbox.MAX_LOG_LENGTH - 20)
    dummy.outcome = OSError(f"amqp://guest:{'S3CRET' * 10}@broker {rest}")
    deliver_due()
    assert "T@broker y" not in caplog.text
    assert "…@broker y" in caplog.text


def test_dead_backend_with_many_items__does_not_starve_the_others(
    dummy: DummyBackend, settings: Any
) -> None:
    settings.RUN_CANCEL_BACKENDS = {
        **settings.RUN_CANCEL_BACKENDS,
        "exploding": {"BACKEND": f"{helpers.__name__}.Exploding"},
    }
    for _ in range(6):
        cancelled(backend="exploding")
    cancelled()
    report = deliver_due(limit=2)
    assert (report.delivered, report.failed, report.repeated) == (1, 2, 0)


def test_report__counts_each_backend_for_itself(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_BACKENDS = {
        "a": {"BACKEND": f"{helpers.__name__}.Exploding"},
        "b": {"BACKEND": f"{helpers.__name__}.Gentle"},
        **settings.RUN_CANCEL_BACKENDS,
    }
    dummy.outcome = StopOutcome.TOLD_ONCE
    for alias in ("a", "a", "b", "dummy"):
        cancelled(backend=alias)
    report = deliver_due()
    assert (report.failed, report.delivered, report.repeated) == (2, 1, 1)


def test_last_attempt__failed_and_loud_until_somebody_retries(
    dummy: DummyBackend, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 2
    runs = [cancelled(), cancelled()]
    dummy.outcome = OSError("broker is away")
    deliver_due()
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    assert deliver_due().failed == 2
    assert "ERROR" in {record.levelname for record in caplog.records}
    assert state_of(runs[0]) == ("failed", "stopping")
    pass_time(10_000)
    dummy.clear()
    deliver_due()
    assert dummy.stopped == []
    assert queue_size()["delivery_failed"] == 2
    mine = CancellationItem.objects.filter(run_id=runs[0].run_id)
    assert retry_deliveries(mine) == 1
    assert item_of(runs[0]).attempts == 0  # all of them are left
    assert deliver_due().delivered == 1
    assert [item_of(run).delivery for run in runs] == ["delivered", "failed"]
    assert retry_deliveries() == 1
    assert retry_deliveries() == 0


def test_maximum_of_attempts_that_was_lowered__holds_for_items_beyond_it(
    dummy: DummyBackend, settings: Any
) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.explode"]
    run = cancelled()
    CancellationItem.objects.update(attempts=5, handling_attempts=5)
    settings.RUN_CANCEL_MAX_ATTEMPTS = 3
    deliver_due()
    assert dummy.stopped == []
    assert (item_of(run).delivery, item_of(run).handling) == ("failed", "failed")


def test_retry__of_an_item_that_has_been_delivered_meanwhile(
    dummy: DummyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cancelled()
    CancellationItem.objects.update(delivery="failed", next_attempt_at=None)

    def read_and_deliver(*args: Any) -> Iterator[list[Any]]:
        for keys in batches(*args):
            CancellationItem.objects.update(delivery="delivered")
            yield keys

    monkeypatch.setattr(outbox, "batches", read_and_deliver)
    assert retry_deliveries() == 0
    assert item_of(run).delivery == "delivered"


@pytest.mark.usefixtures("backends")
def test_bad_rows__hold_nobody_up(dummy: DummyBackend) -> None:
    names = ("unknown", "gone", "exploding", "mute", "listing", "nodding", "speechless", "unsure")
    bad = [cancelled(backend=name) for name in names]
    good = cancelled()
    began = database_now("default")
    report = deliver_due()
    assert (report.delivered, report.failed) == (1, 8)
    assert state_of(good) == ("delivered", "stopping")
    assert [item_of(run).delivery for run in bad] == ["pending"] * 8
    errors = [item_of(run).last_error for run in bad]
    assert "no backend 'unknown'" in errors[0]
    assert "nowhere" in errors[1]
    assert errors[2] == "RuntimeError: boom"
    assert "'mute' did not say" in errors[3]
    assert "ValueError" in errors[4]
    assert "'nodding' did not say" in errors[5]
    assert "Unspeakable" in errors[6]
    assert errors[7] == "RuntimeError: cannot tell"
    assert all(item_of(run).next_attempt_at > began + timedelta(seconds=1) for run in bad)
    # Nobody knows of backends that cannot be loaded that they can be told by force.
    assert [item_of(run).escalates_at for run in bad[:2]] == [None, None]


def test_row_that_cannot_be_written__holds_no_other_up(
    dummy: DummyBackend, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a trigger of the host refuses it."""
    dummy.outcome = StopOutcome.STOPPED
    bad, *others = [cancelled(external_id=f"job {n}") for n in range(3)]
    nobody_knows = cancelled(external_id="")
    with unwritable(bad):
        assert deliver_due().delivered == 2
        assert [state_of(run) for run in others] == [("delivered", "killed")] * 2
        assert state_of(bad) == ("pending", "stopping")
        settings.RUN_CANCEL_PRESUME_SECONDS = 0.001
        look_again()
        assert deliver_due().presumed == 1
        assert state_of(nobody_knows)[1] == "presumed"
    assert len([each for each in caplog.messages if bad.run_id in each]) == 1
    pass_time(60)
    deliver_due()
    assert state_of(bad) == ("delivered", "killed")
