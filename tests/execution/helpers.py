"""Cancelling, waiting and looking at runs from other threads, for the tests of executions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, connections

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.execution import Execution
from django_run_cancel.states import StopState
from tests.helpers import IS_POSTGRESQL, IS_SQLITE

PATIENCE = 60
"""Seconds that a test waits for what must happen, also on a slow machine."""


def cancel(*runs: Any) -> None:
    cancel_runs([run.run_id for run in runs], requested_by="tests", reason="enough")


def elsewhere(job: Callable[..., Any], *args: Any) -> Any:
    """Do something in another thread, with a connection of its own."""

    def work() -> Any:
        try:
            return job(*args)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(PATIENCE)


def work_on(run: Execution, seconds: float = PATIENCE) -> None:
    """Ask at checkpoints until one of them raises."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        run.checkpoint()
        time.sleep(0.002)


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def fresh(run: Any) -> Any:
    run.refresh_from_db()
    return run


def kill_other_sessions() -> None:
    """End the connections of all other threads, as a restart of the database does."""
    with connection.cursor() as cursor:
        if IS_POSTGRESQL:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        else:
            cursor.execute(
                "SELECT id FROM information_schema.processlist"
                " WHERE db = database() AND id <> connection_id()"
            )
            for (session,) in cursor.fetchall():
                cursor.execute(f"KILL {session}")


@contextmanager
def database_away() -> Iterator[Callable[[], None]]:
    """Let no thread connect to the database; yield what brings it back, from any thread."""
    before = dict(connection.settings_dict)
    connection.close()
    connection.settings_dict.update({"NAME": "/nowhere/db"} if IS_SQLITE else {"PORT": "1"})

    def come_back() -> None:
        connections.settings[connection.alias].update(before)

    try:
        yield come_back
    finally:
        come_back()


def rename_table(old: str, new: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")


acancel = sync_to_async(cancel)


def run_async(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine; what it asks of the database is asked in this thread."""
    async_to_sync(main)()


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def acknowledged(*runs: Any) -> bool:
    return all(fresh(run).stop_state == StopState.ACKNOWLEDGED for run in runs)
