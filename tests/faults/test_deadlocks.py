"""Statements that change the status of one run, while a cancellation has its row locked.

A statement that finds the row through an index on the status, as MySQL and MariaDB do in a table
with few such rows, locks the entry of the index first and then waits for the row. The cancellation
has the row, and waits for the entry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, connections

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.execution.ownership import Ownership
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from tests.helpers import IS_MYSQL, IS_SQLITE, make_run, make_runs

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(IS_SQLITE, reason="SQLite locks the whole database."),
]

UPDATE = f"UPDATE {connection.ops.quote_name(get_run_model()._meta.db_table)} "


def is_waited_for() -> bool:
    """Tell whether another session waits for a lock."""
    time.sleep(0.15)  # InnoDB renews its table of waits ten times a second, unless it is asked then
    question = (
        "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        if IS_MYSQL
        else "SELECT count(*) FROM pg_locks WHERE NOT granted"
    )
    with connection.cursor() as cursor:
        cursor.execute(question)
        return bool(cursor.fetchone()[0])


def complete(run: Any) -> None:
    run.mark_completed()


def fail(run: Any) -> None:
    run.mark_failed("broken")


def pause(run: Any) -> None:
    run.mark_paused()


def start(run: Any) -> None:
    Ownership(run.run_id, ()).start(uuid4(), False)


def finish(run: Any) -> None:
    ownership = Ownership(run.run_id, ())
    ownership.execution_id = run.execution_id
    ownership.finish(None)


def meanwhile(action: Callable[[Any], None], run: Any, locked: threading.Event) -> str:
    """Do something in another thread once the row is locked, and return the error by its name."""
    try:
        assert locked.wait(120)
        action(run)
    except (TransitionNotAllowed, RunCancelled) as error:
        return type(error).__name__
    finally:
        connections.close_all()
    return ""


@pytest.mark.parametrize("action", [complete, fail, pause, start, finish])
def test_change_of_the_status_waits(action: Callable[[Any], None]) -> None:
    make_runs(30, "completed")
    run = make_run("queued" if action is start else "running", execution_id=uuid4())
    locked = threading.Event()
    deadlocks: list[Any] = []

    def pause_before_update(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        if UPDATE in sql and not locked.is_set():
            locked.set()
            wait_until(is_waited_for, "the other statement to wait")
        try:
            return execute(sql, *args)
        except Exception as error:
            deadlocks.append(error)
            raise

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(meanwhile, action, run, locked)
        with connection.execute_wrapper(pause_before_update):
            result = cancel_runs([run.run_id], requested_by="tests")
        assert other.result(120) in {"TransitionNotAllowed", "RunCancelled", ""}
    assert result.cancelled == [run.run_id]
    assert deadlocks == []
    run.refresh_from_db()
    assert run.status == "cancelled"
