"""``queue_size()``: the figures to watch."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.cancellation import record_stopped, start_bulk_cancellation
from django_run_cancel.delivery import deliver_due
from django_run_cancel.delivery.outbox import queue_size
from django_run_cancel.models import CancellationChunk, CancellationItem, get_run_model
from django_run_cancel.testing import DummyBackend
from tests.delivery import helpers
from tests.delivery.helpers import cancelled, pass_time
from tests.helpers import make_runs


def test_queue_size(dummy: DummyBackend, handled: Any) -> None:
    assert set(queue_size().values()) == {0}
    cancelled()
    pass_time(7)
    figures = queue_size()
    assert 7 <= figures.pop("oldest_due_seconds") < 300
    assert figures == {
        "delivery_pending": 1,
        "delivery_failed": 0,
        "handling_pending": 1,
        "handling_failed": 0,
        "dispatch_pending": 0,
        "stopping": 1,
        "bulk_pending": 0,
    }


def test_queue_size__after_delivery(dummy: DummyBackend, handled: Any) -> None:
    run = cancelled()
    pass_time(7)
    assert deliver_due().delivered == 1
    delivered = queue_size()
    assert delivered.pop("stopping") == 1
    assert set(delivered.values()) == {0}
    record_stopped([run.run_id], "acknowledged")
    assert set(queue_size().values()) == {0}


def test_queue_size__what_is_due_later_is_pending_and_not_late(dummy: DummyBackend) -> None:
    dummy.outcome = OSError("away")
    cancelled()
    assert deliver_due().failed == 1
    figures = queue_size()
    assert (figures["delivery_pending"], figures["oldest_due_seconds"]) == (1, 0)


@pytest.mark.parametrize("late", ["delivery", "handling"])
def test_queue_size__age_is_that_of_the_oldest_in_either_queue(
    dummy: DummyBackend, handled: Any, late: str
) -> None:
    cancelled()
    ages = {"delivery": 60, "handling": 60, late: 600}
    now = timezone.now()
    CancellationItem.objects.update(
        next_attempt_at=now - timedelta(seconds=ages["delivery"]),
        next_handling_at=now - timedelta(seconds=ages["handling"]),
    )
    assert 600 <= queue_size()["oldest_due_seconds"] < 900


def test_queue_size__runs_of_bulk_cancellations_that_are_left(dummy: DummyBackend) -> None:
    make_runs(3)
    start_bulk_cancellation(get_run_model()._base_manager.all(), requested_by="tests")
    assert queue_size()["bulk_pending"] == 3
    CancellationChunk.objects.update(position=1)
    assert queue_size()["bulk_pending"] == 2
    CancellationChunk.objects.update(state="aborted")
    assert queue_size()["bulk_pending"] == 0


def test_queue_size__given_up(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 1
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.explode"]
    dummy.outcome = OSError("away")
    cancelled()
    assert deliver_due().failed == 2
    figures = queue_size()
    assert (figures["delivery_failed"], figures["handling_failed"]) == (1, 1)
    assert (figures["delivery_pending"], figures["handling_pending"]) == (0, 0)
