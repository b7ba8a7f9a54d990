from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone

from django_run_cancel.cancellation import (
    advance_bulk_cancellations,
    cancel_runs,
    start_bulk_cancellation,
)
from django_run_cancel.delivery.step import DeliveryReport
from django_run_cancel.management.commands import deliver_cancellations
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import cancelled, item_of
from tests.execution.helpers import elsewhere
from tests.helpers import ids, make_runs, statuses, unwritable


def run(command: str, *arguments: str, **options: Any) -> str:
    output = StringIO()
    call_command(command, *arguments, stdout=output, **options)
    return output.getvalue()


def send_later(*delays: float) -> None:
    """Send ourselves SIGTERM, after so many seconds each."""

    def send() -> None:
        for delay in delays:
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()


class Killed(BaseException):
    """In the place of death."""


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    """Keep the test run alive if a signal is not caught."""

    def kill(*args: Any) -> None:
        raise Killed

    before = signal.signal(signal.SIGTERM, kill)
    yield
    assert signal.signal(signal.SIGTERM, before) is kill  # as it was


def test_once__one_step(dummy: DummyBackend) -> None:
    cancel_runs(ids(make_runs(5, RunStatus.RUNNING)), requested_by="tests")
    assert run("deliver_cancellations", "--once", "--batch-size=2") == ""
    assert len(dummy.stopped) == 2


def test_burst__until_nothing_is_due(dummy: DummyBackend) -> None:
    cancel_runs(ids(make_runs(5, RunStatus.RUNNING)), requested_by="tests")
    output = run("deliver_cancellations", "--burst", "--batch-size=2", verbosity=2)
    assert len(dummy.stopped) == 5
    assert output.count("delivered=2") == 2
    assert output.count("delivered=1") == 1


def test_idle_worker__keeps_its_connection(dummy: DummyBackend, monkeypatch: Any) -> None:
    """Also where CONN_MAX_AGE is 0, as it is by default."""
    opened = []

    def deliver_due(limit: int) -> DeliveryReport:
        connection.ensure_connection()
        opened.append(connection.connection)
        if len(opened) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return DeliveryReport()

    monkeypatch.setattr(deliver_cancellations, "deliver_due", deliver_due)
    run("deliver_cancellations", "--interval=0.01")
    assert len(opened) == 3
    assert len(set(map(id, opened))) == 1


def test_not_in_the_main_thread(dummy: DummyBackend) -> None:
    """Where no signal handler can be set."""
    item = cancelled()
    elsewhere(run, "deliver_cancellations", "--once")
    assert item_of(item).delivery == "delivered"


def test_queue_size__a_line_of_figures(dummy: DummyBackend) -> None:
    cancelled()
    line = run("deliver_cancellations", "--queue-size")
    figures = dict(pair.split("=") for pair in line.split())
    assert (figures["delivery_pending"], figures["stopping"]) == ("1", "1")
    assert (figures["bulk_pending"], figures["late_seconds"]) == ("0", "0")
    assert figures["unknown_backend_pending"] == "0"
    assert dummy.stopped == []


def test_queue_size__a_backend_that_was_removed(dummy: DummyBackend) -> None:
    for alias in ("dummy", "old", "older"):
        cancelled(backend=alias)
    figures = dict(pair.split("=") for pair in run("deliver_cancellations", "--queue-size").split())
    assert (figures["delivery_pending"], figures["unknown_backend_pending"]) == ("3", "2")


def test_queue_size__a_worker_that_is_down(dummy: DummyBackend) -> None:
    """What is late shows, also where it is no delivery."""
    make_runs(3)
    start_bulk_cancellation(get_run_model()._base_manager.all(), requested_by="tests")
    CancellationChunk.objects.update(advanced_at=timezone.now() - timedelta(minutes=10))
    line = run("deliver_cancellations", "--queue-size")
    figures = dict(pair.split("=") for pair in line.split())
    assert (figures["bulk_pending"], figures["oldest_due_seconds"]) == ("3", "0")
    assert 590 < int(figures["late_seconds"]) < 700


def test_sigterm__ends_a_worker_that_waits(dummy: DummyBackend) -> None:
    item = cancelled()
    send_later(0.3)
    began = time.monotonic()
    run("deliver_cancellations", "--interval=30")
    assert 0.25 < time.monotonic() - began < 30
    assert item_of(item).delivery == "delivered"


def test_sigterm__the_step_is_finished(dummy: DummyBackend, monkeypatch: Any) -> None:
    real = DummyBackend.stop

    def slow(self: DummyBackend, requests: Any, *, force: bool) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        return real(self, requests, force=force)

    monkeypatch.setattr(DummyBackend, "stop", slow)
    first, second = cancelled(), cancelled()
    run("deliver_cancellations", "--batch-size=1")
    assert [item_of(each).delivery for each in (first, second)] == ["delivered", "pending"]


def test_sigterm__the_second_one_at_once(dummy: DummyBackend, monkeypatch: Any) -> None:
    monkeypatch.setattr(deliver_cancellations, "deliver_due", lambda limit: time.sleep(60))
    send_later(0.2, 0.2)
    began = time.monotonic()
    with pytest.raises(Killed):
        run("deliver_cancellations")
    assert time.monotonic() - began < 60


def test_database_away__goes_on(monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    away = OperationalError("away")
    answers: list[Any] = [away, away, away, DeliveryReport(), DeliveryReport(delivered=1)]

    def deliver_due(limit: int) -> DeliveryReport:
        answer = answers.pop(0)
        if not answers:
            os.kill(os.getpid(), signal.SIGTERM)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    monkeypatch.setattr(deliver_cancellations, "deliver_due", deliver_due)
    run("deliver_cancellations", "--interval=0.01")
    assert answers == []
    # Once, and not at each step.
    assert caplog.text.count("The delivery worker tries again") == 1
    assert caplog.text.count("reaches the database again") == 1


@pytest.mark.parametrize("mode", ["--once", "--burst"])
def test_database_away__is_an_error_for_who_does_not_loop(mode: str, monkeypatch: Any) -> None:
    def deliver_due(limit: int) -> DeliveryReport:
        raise OperationalError("away")

    monkeypatch.setattr(deliver_cancellations, "deliver_due", deliver_due)
    with pytest.raises(OperationalError):
        run("deliver_cancellations", mode)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--once", "--burst"],
        ["--interval=0"],
        ["--interval=nan"],
        ["--interval=inf"],
        ["--interval=soon"],
        ["--batch-size=0"],
        ["--batch-size=1.5"],
    ],
)
def test_arguments__refused(arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        run("deliver_cancellations", *arguments)


NOTHING = "No failed deliveries to retry.\n"


def test_retry_deliveries(dummy: DummyBackend) -> None:
    runs = [cancelled(backend=name) for name in ("dummy", "dummy", "other")]
    CancellationItem.objects.update(delivery="failed")
    record = item_of(runs[0]).cancellation.cancellation_id
    assert (
        run("retry_deliveries", f"--cancellation={record}")
        == "The delivery worker will retry 1 delivery.\n"
    )
    assert (
        run("retry_deliveries", "--backend=other") == "The delivery worker will retry 1 delivery.\n"
    )
    assert [item_of(each).delivery for each in runs] == ["pending", "failed", "pending"]
    assert run("retry_deliveries") == "The delivery worker will retry 1 delivery.\n"
    assert run("retry_deliveries") == NOTHING


@pytest.mark.parametrize("unknown", ["dumy", "", "\udcff"])
def test_retry_deliveries__unknown_backend(dummy: DummyBackend, unknown: str) -> None:
    cancelled(backend="removed")
    CancellationItem.objects.update(delivery="failed")
    with pytest.raises(CommandError) as raised:
        run("retry_deliveries", f"--backend={unknown}")
    message = str(raised.value)
    assert raised.value.returncode == 2
    assert message.startswith(f"There is no backend {unknown!r}. Choose from: ")
    assert "dummy" in message
    assert "removed" in message


@pytest.mark.parametrize("unknown", ["can_nope", "", "\0", "\udcff", "x" * 65])
def test_retry_deliveries__unknown_cancellation(dummy: DummyBackend, unknown: str) -> None:
    failed, other = item_of(cancelled()).cancellation, item_of(cancelled()).cancellation
    failed.items.update(delivery="failed")
    with pytest.raises(CommandError) as raised:
        run("retry_deliveries", f"--cancellation={unknown}")
    assert raised.value.returncode == 2
    assert str(raised.value) == (
        f"There is no cancellation {unknown!r}. Choose from: {failed.cancellation_id}."
    )
    assert run("retry_deliveries", f"--cancellation={other.cancellation_id}") == NOTHING
    failed.items.update(delivery="delivered")
    with pytest.raises(CommandError, match="Choose from: none"):
        run("retry_deliveries", f"--cancellation={unknown}")


@pytest.mark.django_db(transaction=True)
class TestRetryOfBulkCancellations:
    def fail(self) -> Any:
        """Return a run that could not be written, in a cancellation of two."""
        refused, other = make_runs(2)
        runs = get_run_model()._base_manager.filter(pk__in=[refused.pk, other.pk])
        start_bulk_cancellation(runs, requested_by="tests")
        with unwritable(refused):
            while advance_bulk_cancellations(10):
                pass
        return refused

    def test_all(self, dummy: DummyBackend) -> None:
        refused = [self.fail(), self.fail()]
        item = cancelled()
        CancellationItem.objects.filter(run_id=item.run_id).update(delivery="failed")
        assert (
            run("retry_deliveries", "--backend=dummy")
            == "The delivery worker will retry 1 delivery.\n"
        )
        CancellationItem.objects.filter(run_id=item.run_id).update(delivery="failed")
        assert run("retry_deliveries") == (
            "The delivery worker will retry 1 delivery.\n"
            "The delivery worker will try to cancel 2 runs.\n"
        )
        while advance_bulk_cancellations(10):
            pass
        assert statuses(*refused) == ["cancelled"] * 2
        assert run("retry_deliveries") == NOTHING

    def test_one(self, dummy: DummyBackend) -> None:
        first, second = self.fail(), self.fail()
        record = Cancellation.objects.latest("pk")
        with pytest.raises(CommandError, match=f"Choose from: {record.cancellation_id}, can_"):
            run("retry_deliveries", "--cancellation=can_nope")
        out = run("retry_deliveries", f"--cancellation={record.cancellation_id}")
        assert out == "The delivery worker will try to cancel 1 run.\n"
        while advance_bulk_cancellations(10):
            pass
        assert statuses(first, second) == ["queued", "cancelled"]

    def test_aborted__stays_so(self, dummy: DummyBackend) -> None:
        self.fail()
        Cancellation.objects.update(state="aborted")
        assert run("retry_deliveries") == NOTHING
