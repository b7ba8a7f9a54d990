"""PgBouncer in transaction mode: cancelling, delivering, executing and listening through it."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connection, connections

from django_run_cancel.cancellation import advance_bulk_cancellations, start_bulk_cancellation
from django_run_cancel.delivery import deliver_due
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution, watcher
from django_run_cancel.models import ApiKey, CancellationItem, get_run_model
from django_run_cancel.testing import DummyBackend
from tests.execution.helpers import cancel, elsewhere, fresh, wait_until, work_on
from tests.faults.helpers import empty_tables, finish_everything
from tests.faults.invariants import assert_rows_sound
from tests.faults.postgres_server import PostgresServer, own_server, used_by_django
from tests.faults.processes import Child
from tests.helpers import IS_POSTGRESQL, ApiClient, ids, make_run, make_runs
from tests.scaling.pgbouncer import own_pgbouncer, through_port

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not IS_POSTGRESQL, reason="PgBouncer is for PostgreSQL."),
]

CLIENTS = 8
POOL_SIZE = 3
"""Connections to the server, for more clients than that."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with own_server(max_connections=20) as server:
        yield server


@pytest.fixture(scope="module")
def port(server: PostgresServer) -> Iterator[int]:
    with own_pgbouncer(server, POOL_SIZE) as port:
        yield port


@pytest.fixture
def direct(server: PostgresServer, port: int, transactional_db: None) -> Iterator[None]:
    with used_by_django(server):
        empty_tables()
        yield


@pytest.fixture
def through_pgbouncer(direct: None, port: int) -> Iterator[None]:
    with through_port(port):
        yield


def server_processes() -> set[int]:
    """Return the sessions that a few statements of this thread have used."""
    found = set()
    for _ in range(20):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            found.add(cursor.fetchone()[0])
    return found


@pytest.mark.usefixtures("through_pgbouncer")
def test_connections_are_shared() -> None:
    """What the other tests try is a pool indeed: many clients, and few sessions."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        jobs = [pool.submit(elsewhere, server_processes) for _ in range(CLIENTS)]
        used = set[int]().union(*(job.result() for job in jobs))
    assert 1 < len(used) <= POOL_SIZE


@pytest.mark.usefixtures("through_pgbouncer")
def test_server_settings_are_refused() -> None:
    """Why the documentation says to set them for the role or the database instead."""
    connection.close()
    options = {**connection.settings_dict["OPTIONS"], "options": "-c statement_timeout=1000"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connection.settings_dict, "OPTIONS", options)
        with pytest.raises(OperationalError, match="unsupported startup parameter"):
            connection.ensure_connection()


@pytest.mark.usefixtures("through_pgbouncer")
def test_many_clients_and_workers(dummy: DummyBackend) -> None:
    """Each client gets the true answer, and each executor is told."""
    key = ApiKey.issue("tests")[1]
    parts = [make_runs(20, "running") for _ in range(CLIENTS)]

    def ask(runs: list[Any]) -> Any:
        return ApiClient(key).cancel(ids(runs)).json()

    def deliver() -> None:
        while CancellationItem.objects.filter(delivery="pending").exists():
            deliver_due()

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda runs: elsewhere(ask, runs), parts))
        assert answers == [{"cancelled": ids(runs), "failed": []} for runs in parts]
        for job in [pool.submit(elsewhere, deliver) for _ in range(4)]:
            job.result()
    told = {request.run_id for request, _ in dummy.stopped}
    assert told == {run.run_id for runs in parts for run in runs}
    finish_everything()
    assert_rows_sound(everything_done=True)


@pytest.mark.usefixtures("through_pgbouncer")
def test_bulk_cancellation(dummy: DummyBackend) -> None:
    """Several workers share it."""
    make_runs(2_500)
    runs = get_run_model()._base_manager.all()
    record = start_bulk_cancellation(runs, requested_by="tests").cancellation

    def advance() -> None:
        while advance_bulk_cancellations(1):
            pass

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(elsewhere, advance) for _ in range(2)]:
            job.result()
    record.refresh_from_db()
    assert (record.state, record.cancelled_count) == ("completed", 2_500)
    assert_rows_sound()


@pytest.mark.usefixtures("through_pgbouncer", "watched")
def test_polling() -> None:
    run = make_run()
    with pytest.raises(RunCancelled), execution(run.run_id) as executed:
        elsewhere(cancel, run)
        work_on(executed)
    assert fresh(run).stop_state == "acknowledged"


@pytest.mark.usefixtures("through_pgbouncer", "watched")
def test_listening_through_it__polls_tell_the_code(settings: Any) -> None:
    """The session that listens may serve somebody else when the notification comes."""
    settings.RUN_CANCEL_LISTEN = True
    settings.RUN_CANCEL_POLL_SECONDS = 3
    run = make_run()
    with pytest.raises(RunCancelled), execution(run.run_id) as executed:
        wait_until(lambda: watcher.current._listening_connection is not None)
        elsewhere(cancel, run)
        work_on(executed)  # told by a poll
    assert fresh(run).stop_state == "acknowledged"


@pytest.mark.usefixtures("direct", "watched")
def test_listening_directly(settings: Any, port: int) -> None:
    """Who cancels may go through PgBouncer if who executes does not: NOTIFY passes, LISTEN not."""
    settings.RUN_CANCEL_LISTEN = True
    settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 3_600
    run = make_run()

    def cancel_through_pgbouncer() -> None:
        with through_port(port):
            cancel(run)

    child = Child(cancel_after_start(run, cancel_through_pgbouncer))
    with pytest.raises(RunCancelled), execution(run.run_id) as executed:
        wait_until(lambda: watcher.current._listening_connection is not None)
        get_run_model()._base_manager.filter(pk=run.pk).update(title="listening")
        work_on(executed)
    assert not child.wait().is_killed
    connections.close_all()
    assert fresh(run).stop_state == "acknowledged"


def cancel_after_start(run: Any, action: Any) -> Any:
    """Return a function that acts once the run's title says that its process listens."""

    def act() -> None:
        wait_until(lambda: fresh(run).title == "listening")
        action()

    return act
