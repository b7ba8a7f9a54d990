from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from django_run_cancel.management.interrupts import deferred_interrupts
from django_run_cancel.management.progress import progress


class Interrupted(BaseException):
    pass


@pytest.fixture(autouse=True)
def handler() -> Iterator[Any]:
    """Handle SIGTERM as a caller of a command would, and see that it is handled so again."""

    def interrupt(*args: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    yield interrupt
    assert signal.signal(signal.SIGTERM, before) is interrupt


def test_first_signal_is_noted_and_the_second_acts_as_always() -> None:
    told: list[str] = []
    with deferred_interrupts(lambda: told.append("told")) as received:
        assert received == []
        signal.raise_signal(signal.SIGTERM)
        assert (received, told) == ([signal.SIGTERM], ["told"])
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupts() as received:
            signal.raise_signal(signal.SIGINT)
        assert received == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_restored_after_an_error(handler: Any) -> None:
    with pytest.raises(ValueError, match="broken"), deferred_interrupts():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGTERM) is handler


def test_threads_other_than_the_main_one_get_no_signals() -> None:
    seen = []

    def work() -> None:
        with deferred_interrupts() as received:
            seen.append(received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]


def test_progress_without_tqdm(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress("run") as advance:
        advance(3)
