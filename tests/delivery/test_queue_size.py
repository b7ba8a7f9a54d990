"""``queue_size()``: the figures to watch."""

from __future__ import annotations

from typing import Any

from django_run_cancel.delivery.outbox import queue_size
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import (
    cancelled,
    pass_time,
)


def test_queue_size(dummy: DummyBackend, handled: Any) -> None:
    assert set(queue_size().values()) == {0}
    cancelled()
    pass_time(7)
    assert queue_size() == {
        "delivery_pending": 1,
        "delivery_failed": 0,
        "handling_pending": 1,
        "handling_failed": 0,
        "dispatch_pending": 0,
        "stopping": 1,
        "bulk_pending": 0,
        "oldest_due_seconds": 7,
    }
