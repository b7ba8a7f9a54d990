from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections, transaction

from django_run_cancel.backends.bounded import MAX_WAITING, call_bounded, call_database
from tests.helpers import make_run, statuses


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """Yield what a dead server never does."""
    event = threading.Event()
    yield event
    event.set()


def test_returns_and_raises() -> None:
    assert call_bounded(lambda: "answer", "a", 1) == "answer"
    with pytest.raises(ZeroDivisionError):
        call_bounded(lambda: 1 // 0, "a", 1)


def test_no_threads_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(MAX_WAITING + 1):
            with pytest.raises(RuntimeError, match="new thread"):
                call_bounded(lambda: "answer", "c", 0.1)
    assert call_bounded(lambda: "answer", "c", 1) == "answer"


def test_raises_the_timeout_of_the_client() -> None:
    def fail() -> None:
        raise TimeoutError("of the client")

    with pytest.raises(TimeoutError, match="of the client"):
        call_bounded(fail, "a", 1)


def test_waits_no_longer_than_the_timeout(never: threading.Event) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"No answer within 0\.1 s"):
        call_bounded(never.wait, "a", 0.1)
    assert time.monotonic() - began < 30  # a slow machine; the call itself never ends


def test_calls_that_are_never_answered_do_not_pile_up(never: threading.Event) -> None:
    def call() -> bool:
        try:
            return call_bounded(never.wait, "a", 0.2)
        except TimeoutError:
            return False

    with ThreadPoolExecutor(3 * MAX_WAITING) as pool:
        outcomes = [pool.submit(call) for _ in range(3 * MAX_WAITING)]
    assert not any(outcome.result() for outcome in outcomes)
    waiting = [thread for thread in threading.enumerate() if thread.name == "run-cancel-call"]
    assert 1 < len(waiting) <= MAX_WAITING
    assert call_bounded(lambda: "of another backend", "b", 5) == "of another backend"
    never.set()
    assert call_bounded(lambda: "again", "a", 5) == "again"


@pytest.mark.django_db(transaction=True)
def test_leaves_no_connection_behind() -> None:
    def look() -> Any:
        connection.ensure_connection()
        return connections[connection.alias]

    theirs = call_bounded(look, "a", 5)
    assert theirs is not look()
    until = time.monotonic() + 5
    # Not by using it: SQLite does not survive that while another thread closes it.
    while theirs.connection is not None:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.django_db(transaction=True)
def test_in_the_database_of_the_runs_it_belongs_to_the_transaction() -> None:
    with transaction.atomic():
        run = call_database(make_run, connections["default"].alias, "a", 1)
        assert statuses(run) == ["queued"]
        transaction.set_rollback(True)
    with pytest.raises(KeyError):
        statuses(run)


@pytest.mark.parametrize("using", [None, "elsewhere"])
def test_any_other_database_is_bounded(never: threading.Event, using: str | None) -> None:
    with pytest.raises(TimeoutError):
        call_database(never.wait, using, "a", 0.1)
