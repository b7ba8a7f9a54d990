"""Lateness: what is due for minutes is found, and a worker at work or a quiet one is not blamed."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.cancellation import (
    advance_bulk_cancellations,
    cancel_runs,
    start_bulk_cancellation,
)
from django_run_cancel.delivery import lateness
from django_run_cancel.delivery.lateness import Overdue, find_lateness, find_unknown_backends
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from tests.delivery.helpers import deliver_all
from tests.helpers import make_run

pytestmark = pytest.mark.django_db


def ago(minutes: float) -> datetime:
    return timezone.now() - timedelta(minutes=minutes)


@pytest.fixture
def stopping() -> Any:
    """Return a run whose executor has been told, and set the presumption far ahead."""
    run = make_run("running")
    cancel_runs([run.run_id], requested_by="x")
    CancellationItem.objects.update(delivery="delivered", next_attempt_at=None)
    return run


def set_item(**values: Any) -> None:
    CancellationItem.objects.update(**values)


def test_nothing() -> None:
    assert find_lateness() is None


@pytest.mark.usefixtures("stopping")
class TestDelivery:
    @pytest.mark.parametrize("minutes", [2.1, 12.5])
    def test_late(self, minutes: float) -> None:
        set_item(delivery="pending", next_attempt_at=ago(minutes))
        late = find_lateness()
        assert late is not None
        assert late.overdue == Overdue.DELIVERY
        assert timedelta() <= late.duration - timedelta(minutes=minutes) < timedelta(minutes=1)

    def test_oldest_of_several_backends(self, settings: Any) -> None:
        settings.RUN_CANCEL_BACKENDS = {**settings.RUN_CANCEL_BACKENDS, "other": {}}
        set_item(delivery="pending", next_attempt_at=ago(5))
        cancel_runs([make_run("running", backend="other").run_id], requested_by="x")
        CancellationItem.objects.filter(backend="other").update(next_attempt_at=ago(20.5))
        late = find_lateness()
        assert late is not None
        assert late.duration > timedelta(minutes=20)

    def test_backend_that_was_removed(self, settings: Any) -> None:
        set_item(delivery="pending", next_attempt_at=ago(12.5))
        settings.RUN_CANCEL_BACKENDS = {}
        late = find_lateness()
        assert late is not None
        assert late.overdue == Overdue.DELIVERY
        assert late.duration > timedelta(minutes=12)

    @pytest.mark.parametrize(
        ("delivery", "minutes"), [("pending", 0.5), ("pending", -5), ("delivered", 12)]
    )
    def test_not_late(self, delivery: str, minutes: float) -> None:
        set_item(delivery=delivery, next_attempt_at=ago(minutes))
        assert find_lateness() is None

    def test_worker_that_is_at_others(self) -> None:
        set_item(delivery="pending", next_attempt_at=ago(12))
        cancel_runs([make_run("running").run_id], requested_by="x")
        newest = CancellationItem.objects.filter(pk=CancellationItem.objects.latest("pk").pk)
        newest.update(claimed_by=uuid.uuid4(), claimed_until=ago(-1))
        assert find_lateness() is None

    def test_worker_that_died_with_what_it_had_claimed(self) -> None:
        claim = {"claimed_by": uuid.uuid4(), "claimed_until": ago(11)}
        set_item(delivery="pending", next_attempt_at=ago(12), **claim)
        assert find_lateness() is not None

    def test_handlers(self, settings: Any) -> None:
        set_item(handling="pending", next_handling_at=ago(12))
        assert find_lateness() is None  # there are none any more
        settings.RUN_CANCEL_HANDLERS = ["tests.handlers.any"]
        late = find_lateness()
        assert late is not None
        assert late.overdue == Overdue.DELIVERY


class TestUnknownBackends:
    @pytest.fixture(autouse=True)
    def items(self) -> None:
        for alias in ("dummy", "old", "old", "older"):
            cancel_runs([make_run("running", backend=alias).run_id], requested_by="x")

    def test_pending_deliveries_of_each(self) -> None:
        assert find_unknown_backends() == {"old": 2, "older": 1}
        assert find_unknown_backends(1) == {"old": 1, "older": 1}

    @pytest.mark.parametrize("delivery", ["delivered", "failed", "not_needed"])
    def test_other_deliveries_do_not_wait(self, delivery: str) -> None:
        CancellationItem.objects.filter(backend="old").update(delivery=delivery)
        assert find_unknown_backends() == {"older": 1}

    def test_backend_is_added_again(self, settings: Any) -> None:
        old = dict.fromkeys(("old", "older"), settings.RUN_CANCEL_BACKENDS["dummy"])
        settings.RUN_CANCEL_BACKENDS = {**settings.RUN_CANCEL_BACKENDS, **old}
        assert find_unknown_backends() == {}
        deliver_all()  # a step of a slow machine may end before all are told
        assert set(CancellationItem.objects.values_list("delivery", flat=True)) == {"delivered"}


class TestPresumption:
    @pytest.mark.parametrize(("minutes", "is_late"), [(4, False), (6, False), (17.5, True)])
    def test_stopping_since(self, stopping: Any, minutes: float, is_late: bool) -> None:
        get_run_model()._base_manager.filter(pk=stopping.pk).update(finished_at=ago(minutes))
        late = find_lateness()
        assert (late is not None) is is_late
        if late:
            assert late.overdue == Overdue.PRESUMPTION
            assert timedelta(minutes=12) < late.duration < timedelta(minutes=13)

    def test_of_the_runs_that_were_created_first(
        self, stopping: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lateness, "OLDEST_RUNS", 1)
        get_run_model()._base_manager.filter(pk=stopping.pk).update(finished_at=ago(17.5))
        cancel_runs([make_run("running").run_id], requested_by="x")
        late = find_lateness()
        assert late is not None
        assert late.overdue == Overdue.PRESUMPTION

    def test_stopped_long_ago(self, stopping: Any) -> None:
        rows = get_run_model()._base_manager.filter(pk=stopping.pk)
        rows.update(finished_at=ago(60), stop_state="acknowledged")
        assert find_lateness() is None


class TestBulkCancellation:
    @pytest.fixture
    def record(self) -> Cancellation:
        """Return a cancellation of which one chunk is done, and one is not."""
        make_run("running")
        start_bulk_cancellation(get_run_model()._base_manager.all(), requested_by="x")
        advance_bulk_cancellations(10)
        CancellationItem.objects.update(delivery="delivered", next_attempt_at=None)
        make_run("running")
        record = Cancellation.objects.get()
        CancellationChunk.objects.create(
            cancellation=record, kind="requested", run_ids=["x"], size=1, advanced_at=ago(60)
        )
        return record

    def set_done(self, minutes: float) -> None:
        CancellationChunk.objects.filter(state="completed").update(advanced_at=ago(minutes))

    @pytest.mark.parametrize(("minutes", "is_late"), [(1, False), (12.5, True)])
    def test_since_any_chunk_was_advanced(
        self, record: Cancellation, minutes: float, is_late: bool
    ) -> None:
        self.set_done(minutes)
        late = find_lateness()
        assert (late is not None) is is_late
        if late:
            assert late.overdue == Overdue.BULK_CANCELLATION
            assert timedelta(minutes=12) < late.duration < timedelta(minutes=13)

    def test_the_one_of_which_it_is_longest_ago(self, record: Cancellation) -> None:
        self.set_done(5)
        make_run("running")
        start_bulk_cancellation(get_run_model()._base_manager.all(), requested_by="x")
        late = find_lateness()
        assert late is not None
        assert late.overdue == Overdue.BULK_CANCELLATION

    @pytest.mark.parametrize("case", ["due", "put off", "failed"])
    def test_put_off_or_done(self, record: Cancellation, case: str) -> None:
        self.set_done(12)
        values: dict[str, dict[str, Any]] = {
            "due": {"next_attempt_at": ago(0)},
            "put off": {"next_attempt_at": ago(-60)},
            "failed": {"state": "failed"},
        }
        CancellationChunk.objects.filter(state="pending").update(**values[case])
        assert find_lateness() is None


def test_statements(stopping: Any) -> None:
    with CaptureQueriesContext(connection) as captured:
        find_lateness()
    assert len(captured) <= 4, captured.captured_queries
