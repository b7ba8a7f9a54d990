"""PostgreSQL stopped in the middle of a transaction, full, overloaded: 503 or the true answer.

Each test has a server of its own, made with ``initdb``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.execution import execution
from django_run_cancel.models import ApiKey, Cancellation, CancellationItem, get_run_model
from django_run_cancel.testing import DummyBackend
from tests.faults.helpers import empty_tables, finish_everything
from tests.faults.invariants import assert_rows_sound
from tests.faults.postgres_server import PostgresServer, own_server, used_by_django
from tests.helpers import IS_POSTGRESQL, ApiClient, ids, make_run, make_runs, statuses
from tests.services import IS_MISSING

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not IS_POSTGRESQL, reason="Only PostgreSQL is easy to make anew."),
]

AWAY = (503, {"detail": "The database is busy or unreachable; please try again"})


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresServer]:
    with own_server(max_connections=10, superuser_reserved_connections=0) as server:
        yield server


@pytest.fixture
def server(own: PostgresServer, transactional_db: None) -> Iterator[PostgresServer]:
    if not own.is_running:  # a test has failed
        own.start()
    with used_by_django(own):
        yield own


def ask(client: ApiClient, runs: list[Any]) -> tuple[int, Any]:
    response = client.cancel(ids(runs))
    assert response["Content-Type"] == "application/json"
    return response.status_code, response.json()


def done(runs: list[Any]) -> tuple[int, Any]:
    return 200, {"cancelled": ids(runs), "failed": []}


def set_up() -> tuple[ApiClient, list[Any]]:
    empty_tables()
    parent = make_run("running")
    parent.create_child(status="queued")
    return ApiClient(ApiKey.issue("tests")[1]), [parent, make_run()]


@contextmanager
def called_before(statement: str, action: Callable[[], object]) -> Iterator[None]:
    """Do something once, before the first statement that begins in this way, or the COMMIT."""
    todo = [action]

    def wrapper(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        if todo and statement in sql:
            todo.pop()()
        return execute(sql, *args)

    commit = connection._commit

    def watched_commit() -> None:
        if todo and statement == "COMMIT":
            todo.pop()()
        commit()

    with pytest.MonkeyPatch.context() as patch, connection.execute_wrapper(wrapper):
        patch.setattr(connection, "_commit", watched_commit)
        yield
    assert not todo, f"There was no {statement}."


TABLE = get_run_model()._meta.db_table
ITEMS = CancellationItem._meta.db_table


@pytest.mark.parametrize(
    "statement",
    [f'INSERT INTO "{Cancellation._meta.db_table}"', f'UPDATE "{TABLE}"', "COMMIT"],
)
def test_stopped_amid_a_request(
    server: PostgresServer, dummy: DummyBackend, statement: str
) -> None:
    client, runs = set_up()
    assert client.get("/v1/runs").status_code == 200  # the use of the key is noted
    with called_before(statement, server.stop):
        assert ask(client, runs) == AWAY
    assert ask(client, runs) == AWAY
    server.start()
    assert statuses(*runs) == ["running", "queued"]
    assert not Cancellation.objects.exists()
    assert_rows_sound()
    assert ask(client, runs) == done(runs)
    finish_everything()
    assert_rows_sound(everything_done=True)


def test_stopped_amid_a_delivery_step(server: PostgresServer, dummy: DummyBackend) -> None:
    """What the worker had claimed is told again."""
    _, runs = set_up()
    cancel_runs(ids(runs), requested_by="tests")
    with called_before("COMMIT", server.stop), pytest.raises(OperationalError):
        deliver_due()
    server.start()
    connection.close()
    assert_rows_sound()
    finish_everything()
    assert_rows_sound(everything_done=True)
    assert {request.run_id for request, _ in dummy.stopped} >= set(ids(runs))


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["", "cancelled"])
def test_stopped_amid_an_execution(
    server: PostgresServer, dummy: DummyBackend, is_cancelled: bool
) -> None:
    """Its end is recorded once the server is back."""
    empty_tables()
    run = make_run()
    with execution(run.run_id):
        if is_cancelled:
            cancel_runs([run.run_id], requested_by="tests")
        server.stop()
        later = threading.Timer(0.5, server.start)
        later.start()
    later.join()
    run.refresh_from_db()
    expected = ("cancelled", "acknowledged") if is_cancelled else ("completed", "")
    assert (run.status, run.stop_state) == expected
    finish_everything()
    assert_rows_sound(everything_done=True)


def test_too_many_clients(server: PostgresServer, dummy: DummyBackend) -> None:
    client, runs = set_up()
    connection.close()
    others = []
    with suppress(OperationalError):
        while True:
            others.append(connection.copy())
            others[-1].ensure_connection()
    assert len(others) > 5
    try:
        assert ask(client, runs) == AWAY
    finally:
        for other in others:
            other.close()
    assert statuses(*runs) == ["running", "queued"]
    assert ask(client, runs) == done(runs)
    assert_rows_sound()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Yield a folder with a file system of its own, of 4 MB."""
    folder = tempfile.mkdtemp()  # not below the folder of pytest, which the server cannot enter
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs", folder]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            # Not skip_without(): in many places where everything is there, nobody may do this.
            pytest.skip(f"the permission to mount a file system{IS_MISSING}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    finally:
        os.rmdir(folder)


def test_disk_full(server: PostgresServer, dummy: DummyBackend, small_disk: Path) -> None:
    """Of a request for which there is no space, nothing is stored."""
    client, _ = set_up()
    runs = make_runs(100)
    space = small_disk / "space"
    space.mkdir()
    shutil.chown(small_disk, server.user)
    shutil.chown(space, server.user)
    filler = small_disk / "filler"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
        cursor.execute(f'ALTER TABLE "{ITEMS}" SET TABLESPACE small')
        try:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            assert ask(client, runs) == AWAY
            assert set(statuses(*runs)) == {"queued"}
            assert_rows_sound()
            filler.unlink()
            assert ask(client, runs) == done(runs)
        finally:
            cursor.execute(f'ALTER TABLE "{ITEMS}" SET TABLESPACE pg_default')
            cursor.execute("DROP TABLESPACE small")
    finish_everything()
    assert_rows_sound(everything_done=True)
