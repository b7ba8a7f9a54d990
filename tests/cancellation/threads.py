"""Threads with a database connection each, and what must hold after they raced."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction

from django_run_cancel.cancellation import CancelResult, cancel_runs
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import ACTIVE, Outcome, RunStatus
from tests.helpers import IS_MYSQL, IS_POSTGRESQL, IS_SQLITE

PATIENCE = 20
"""Seconds after which a thread that still waits has failed. Nothing that works comes near it."""

Job = Callable[[], Any]


# What each connection is told first. A lock that is never released fails the test, not hangs it.
if IS_POSTGRESQL:
    BOUNDED = [f"SET lock_timeout = '{PATIENCE}s'"]
elif IS_MYSQL:
    BOUNDED = [f"SET SESSION innodb_lock_wait_timeout = {PATIENCE}"]
else:
    BOUNDED = [f"PRAGMA busy_timeout = {PATIENCE * 1000}"]

# Under which isolation levels the races with new children are run. On PostgreSQL under one: a
# system check warns of the others.
ISOLATION: dict[str, list[str]] = {"default": []}
if IS_MYSQL:
    for level in ("READ COMMITTED", "REPEATABLE READ"):
        ISOLATION[level.lower()] = [f"SET SESSION TRANSACTION ISOLATION LEVEL {level}"]
    del ISOLATION["default"]

isolated = pytest.mark.parametrize("isolation", ISOLATION.values(), ids=ISOLATION)


class Worker:
    """A thread with a database connection of its own.

    Attributes:
        errors: What the database refused to this thread, whether or not the caller saw it.
    """

    def __init__(
        self, executor: ThreadPoolExecutor, job: Job, setup: Sequence[str], start: Job
    ) -> None:
        self.errors: list[OperationalError] = []
        self._statement = ""
        self._session = threading.Event()
        self._future: Future[Any] = executor.submit(self._work, job, [*BOUNDED, *setup], start)

    def result(self) -> Any:
        return self._future.result(PATIENCE)

    def error(self) -> BaseException | None:
        return self._future.exception(PATIENCE)

    def until_blocked(self) -> None:
        """Return when the thread waits for a lock that another connection has."""
        assert self._session.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while not self._is_blocked():
            assert not self._future.done(), "It did not wait."
            assert time.monotonic() < deadline, "It does not wait."
            time.sleep(0.12 if IS_MYSQL else 0.01)  # InnoDB renews its table of waits so often

    def _work(self, job: Job, setup: Sequence[str], start: Job) -> Any:
        try:
            with connection.cursor() as cursor:
                level = "".join(setup).lower().partition("isolation level ")[2]
                if IS_MYSQL and level:
                    # As Django has it of a host that sets the level in OPTIONS.
                    connection.isolation_level = level
                for statement in setup:
                    cursor.execute(statement)
            self._pid = session_id()
            self._session.set()
            with connection.execute_wrapper(self._watch):
                start()
                return job()
        finally:
            connections.close_all()

    def _watch(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        self._statement = sql
        try:
            return execute(sql, params, many, context)
        except OperationalError as error:
            self.errors.append(error)
            raise
        finally:
            self._statement = ""

    def _is_blocked(self) -> bool:
        if IS_SQLITE:
            # It does not say who waits; callers hold the write lock while they ask.
            return self._statement.startswith("BEGIN")
        if IS_POSTGRESQL:
            question = "SELECT 1 WHERE cardinality(pg_blocking_pids(%s)) > 0"
        else:
            question = (
                "SELECT 1 FROM information_schema.innodb_trx"
                " WHERE trx_mysql_thread_id = %s AND trx_state = 'LOCK WAIT'"
            )
        return bool(fetch(question, self._pid))


class Workers:
    """Starts threads."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self.all: list[Worker] = []
        self.deadlocks_expected = False

    def start(self, job: Job, setup: Sequence[str] = (), start: Job = lambda: None) -> Worker:
        worker = Worker(self._executor, job, setup, start)
        self.all.append(worker)
        return worker

    def race(
        self, rounds: Sequence[Any], *jobs: Callable[[Any], Any], setup: Sequence[str] = ()
    ) -> list[Any]:
        """Call every job once a round, all at the same moment, each in a thread of its own.

        Returns:
            What they returned, in no particular order.
        """
        line = threading.Barrier(len(jobs), timeout=PATIENCE)

        def play(job: Callable[[Any], Any]) -> list[Any]:
            results = []
            try:
                for number, given in enumerate(rounds):
                    if number:
                        line.wait()
                    results.append(job(given))
            except BaseException:
                line.abort()  # or the others would wait for this one
                raise
            return results

        workers = [self.start(partial(play, job), setup, line.wait) for job in jobs]
        return [result for worker in workers for result in worker.result()]


def is_deadlock(error: OperationalError) -> bool:
    return getattr(error.__cause__, "sqlstate", None) == "40P01" or error.args[0] == 1213


def session_id() -> int:
    question = {"postgresql": "pg_backend_pid()", "mysql": "connection_id()", "sqlite": "0"}
    [[number]] = fetch(f"SELECT {question[connection.vendor]}")
    return int(number)


def deadlocks() -> int:
    """Return how many deadlocks the server has seen in this database."""
    if IS_POSTGRESQL:
        # A session reports its deadlocks at the latest when it ends, which takes it a moment.
        others = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        deadline = time.monotonic() + PATIENCE
        while fetch(others) and time.monotonic() < deadline:
            time.sleep(0.01)
        question = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        [[count]] = fetch(question)
        return int(count)
    if IS_MYSQL:
        # The counter is one for the whole server; the report of the last one says whose it was.
        [[_, _, report]] = fetch("SHOW ENGINE INNODB STATUS")
        _, found, last = report.partition("LATEST DETECTED DEADLOCK")
        name = f"`{connection.settings_dict['NAME']}`"
        if found and name in last.partition("\nTRANSACTIONS\n")[0]:
            question = "SELECT count FROM information_schema.innodb_metrics WHERE name = %s"
            [[count]] = fetch(question, "lock_deadlocks")
            return int(count)
    return 0


def fetch(sql: str, *params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def cancel(run_ids: Sequence[str]) -> CancelResult:
    return cancel_runs(run_ids, requested_by="test")


def check_decided_once(results: Sequence[CancelResult], announced: Sequence[str]) -> None:
    """Answers, records, signals and runs tell the same story."""
    runs = {run.run_id: run for run in get_run_model()._default_manager.all()}
    cancelled = {run_id for run_id, run in runs.items() if run.status == RunStatus.CANCELLED}
    once = Counter(cancelled)
    rows = list(CancellationItem.objects.all())
    by_request = {row.run_id: row.cancellation_id for row in rows if row.outcome == "cancelled"}
    items = [item for result in results for item in result.items]
    assert Counter(item.run_id for item in items if item.outcome == Outcome.CANCELLED) == once
    assert Counter(row.run_id for row in rows if row.outcome == Outcome.CANCELLED) == once
    assert Counter(announced) == once
    assert {run_id: runs[run_id].cancellation_id for run_id in cancelled} == by_request
    assert Cancellation.objects.count() == len(results)
    for result in results:
        assert cancelled.issuperset(result.cancelled)
        assert cancelled.isdisjoint(result.failed)
    for item in items:
        if item.outcome == Outcome.ALREADY_FINISHED:
            assert runs[item.run_id].status == item.previous_status
    for run_id in runs.keys() - cancelled:
        assert (runs[run_id].cancellation_id, runs[run_id].stop_state) == (None, "")


def check_no_orphans() -> None:
    """Nothing below a cancelled run is active, whatever is in between."""
    runs = {run.pk: run for run in get_run_model()._default_manager.all()}
    for run in runs.values():
        above = runs.get(run.parent_id)
        while run.status in ACTIVE and above is not None:
            assert above.status != RunStatus.CANCELLED, f"{run.run_id} survived"
            above = runs.get(above.parent_id)


def flat(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


class Held:
    """A transaction that a thread keeps open after its job, until it is told how to end."""

    def __init__(self, workers: Workers, job: Job, setup: Sequence[str] = ()) -> None:
        self._job = job
        self._done = threading.Event()
        self._end = threading.Event()
        self._fate = "commit"
        self.worker = workers.start(self._hold, setup)
        assert self._done.wait(PATIENCE)

    def end(self, fate: str) -> Any:
        self._fate = fate
        self._end.set()
        return self.worker.result()

    def _hold(self) -> Any:
        try:
            with transaction.atomic():
                result = self._job()
                self._done.set()
                assert self._end.wait(PATIENCE)
                transaction.set_rollback(self._fate == "rollback")
                return result
        finally:
            self._done.set()
