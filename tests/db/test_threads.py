from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connection, connections

from django_run_cancel.db.threads import call_in_thread


def test_result_and_error() -> None:
    assert call_in_thread(threading.get_ident).result(60) != threading.get_ident()
    with pytest.raises(SystemExit):
        call_in_thread(exit).result(60)


def test_the_interpreter_does_not_wait_for_it_and_nobody_can_cancel_it() -> None:
    release = threading.Event()
    future = call_in_thread(release.wait)
    (thread,) = (each for each in threading.enumerate() if each.name == "run-cancel-call")
    assert thread.daemon
    assert not future.cancel()
    release.set()
    assert future.result(60)


def test_no_threads_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="new thread"):
        call_in_thread(int).result(60)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fails", [False, True])
def test_its_connection_is_closed_before_the_result_is_there(fails: bool) -> None:
    used: list[Any] = []

    def use() -> None:
        connection.ensure_connection()
        used.append(connections[connection.alias])
        if fails:
            raise ValueError

    assert bool(call_in_thread(use).exception(60)) is fails
    assert used[0].connection is None
