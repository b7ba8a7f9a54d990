from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from django_run_cancel.backends.dummy import DummyBackend
from django_run_cancel.delivery import DeliveryReport
from django_run_cancel.management.commands import run_cancel_worker
from django_run_cancel.models import CancellationItem
from django_run_cancel.services import cancel_runs
from django_run_cancel.states import RunStatus
from tests.helpers import ids, make_runs
from tests.test_delivery import cancelled, dummy, item_of
from tests.test_worker import elsewhere

__all__ = ["dummy"]


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
    assert run("run_cancel_worker", "--once", "--batch-size=2") == ""
    assert len(dummy.stopped) == 2


def test_burst__until_nothing_is_due(dummy: DummyBackend) -> None:
    cancel_runs(ids(make_runs(5, RunStatus.RUNNING)), requested_by="tests")
    output = run("run_cancel_worker", "--burst", "--batch-size=2", verbosity=2)
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

    monkeypatch.setattr(run_cancel_worker, "deliver_due", deliver_due)
    run("run_cancel_worker", "--interval=0.01")
    assert len(opened) == 3
    assert len(set(map(id, opened))) == 1


def test_not_in_the_main_thread(dummy: DummyBackend) -> None:
    """Where no signal handler can be set."""
    item = cancelled()
    elsewhere(run, "run_cancel_worker", "--once")
    assert item_of(item).delivery == "delivered"


def test_queue_size__a_line_of_figures(dummy: DummyBackend) -> None:
    cancelled()
    line = run("run_cancel_worker", "--queue-size")
    figures = dict(pair.split("=") for pair in line.split())
    assert (figures["delivery_pending"], figures["stopping"]) == ("1", "1")
    assert dummy.stopped == []


def test_sigterm__ends_a_worker_that_waits(dummy: DummyBackend) -> None:
    item = cancelled()
    send_later(0.3)
    began = time.monotonic()
    run("run_cancel_worker", "--interval=30")
    assert 0.25 < time.monotonic() - began < 5
    assert item_of(item).delivery == "delivered"


def test_sigterm__the_step_is_finished(dummy: DummyBackend, monkeypatch: Any) -> None:
    real = DummyBackend.stop

    def slow(self: DummyBackend, requests: Any, *, force: bool) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        return real(self, requests, force=force)

    monkeypatch.setattr(DummyBackend, "stop", slow)
    first, second = cancelled(), cancelled()
    run("run_cancel_worker", "--batch-size=1")
    assert [item_of(each).delivery for each in (first, second)] == ["delivered", "pending"]


def test_sigterm__the_second_one_at_once(dummy: DummyBackend, monkeypatch: Any) -> None:
    monkeypatch.setattr(run_cancel_worker, "deliver_due", lambda limit: time.sleep(60))
    send_later(0.2, 0.2)
    began = time.monotonic()
    with pytest.raises(Killed):
        run("run_cancel_worker")
    assert time.monotonic() - began < 5


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

    monkeypatch.setattr(run_cancel_worker, "deliver_due", deliver_due)
    run("run_cancel_worker", "--interval=0.01")
    assert answers == []
    # Once, and not at each step.
    assert caplog.text.count("goes on after an error of the database") == 1
    assert caplog.text.count("has the database back") == 1


@pytest.mark.parametrize("mode", ["--once", "--burst"])
def test_database_away__is_an_error_for_who_does_not_loop(mode: str, monkeypatch: Any) -> None:
    def deliver_due(limit: int) -> DeliveryReport:
        raise OperationalError("away")

    monkeypatch.setattr(run_cancel_worker, "deliver_due", deliver_due)
    with pytest.raises(OperationalError):
        run("run_cancel_worker", mode)


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
        run("run_cancel_worker", *arguments)


def test_retry_deliveries(dummy: DummyBackend) -> None:
    runs = [cancelled(backend=name) for name in ("dummy", "dummy", "other")]
    CancellationItem.objects.update(delivery="failed")
    record = item_of(runs[0]).cancellation.cancellation_id
    assert run("retry_deliveries", f"--cancellation={record}") == "1 due again.\n"
    assert run("retry_deliveries", "--backend=other") == "1 due again.\n"
    assert [item_of(each).delivery for each in runs] == ["pending", "failed", "pending"]
    assert run("retry_deliveries") == "1 due again.\n"
    assert run("retry_deliveries") == "0 due again.\n"
