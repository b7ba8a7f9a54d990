"""What several test modules need."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from django.db import connection, transaction
from django.db.models import Model
from django.http import HttpResponse
from django.test import Client

from django_run_cancel.models import AbstractRun, get_run_model
from django_run_cancel.states import RunStatus

IS_SQLITE = connection.vendor == "sqlite"
IS_POSTGRESQL = connection.vendor == "postgresql"
IS_MYSQL = connection.vendor == "mysql"


def make_run(status: str = RunStatus.QUEUED, **fields: Any) -> Any:
    """Create a run that its executor knows, unless ``external_id=""`` says otherwise."""
    fields = {"backend": "dummy", "external_id": "job", **fields}
    return get_run_model()._default_manager.create(status=status, **fields)


def make_runs(count: int, status: str = RunStatus.QUEUED, **fields: Any) -> list[Any]:
    """Create many runs at once."""
    model = get_run_model()
    runs = [
        model(status=status, backend="dummy", external_id="job", **fields) for _ in range(count)
    ]
    return model._default_manager.bulk_create(runs)


def ids(runs: list[Any]) -> list[str]:
    return [run.run_id for run in runs]


def statuses(*runs: AbstractRun) -> list[str]:
    """Return the statuses in the database, in the order given."""
    found = dict(get_run_model()._default_manager.values_list("run_id", "status"))
    return [found[run.run_id] for run in runs]


@contextmanager
def locked_elsewhere(*runs: AbstractRun) -> Iterator[None]:
    """Let another session hold a lock on the rows of runs."""
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        rows = get_run_model()._base_manager.select_for_update()
        with transaction.atomic():
            assert len(rows.filter(pk__in=[run.pk for run in runs])) == len(runs)
            locked.set()
            done.wait(120)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(120)
    try:
        yield
    finally:
        done.set()
        thread.join()


def unwritable(run: AbstractRun) -> AbstractContextManager[None]:
    """Let a trigger refuse what is written to the row of a run."""
    return refusing(type(run), f"NEW.run_id = '{run.run_id}'")


@contextmanager
def refusing(model: type[Model], when: str, event: str = "UPDATE") -> Iterator[None]:
    """Let a trigger refuse that some rows of a model are updated or deleted."""
    table = connection.ops.quote_name(model._meta.db_table)
    create = f"CREATE TRIGGER refuse BEFORE {event} ON {table} FOR EACH ROW"
    statements = {
        "sqlite": [f"{create} WHEN {when} BEGIN SELECT RAISE(ABORT, 'refused'); END"],
        "mysql": [f"{create} IF {when} THEN SIGNAL SQLSTATE '45000'; END IF"],
        "postgresql": [
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RAISE ''refused''; END'",
            f"{create} WHEN ({when}) EXECUTE FUNCTION refuse()",
        ],
    }
    on_table = f" ON {table}" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        for statement in statements[connection.vendor]:
            cursor.execute(statement)
        try:
            yield
        finally:
            cursor.execute(f"DROP TRIGGER refuse{on_table}")


@contextmanager
def rows_locked(table: str, column: str, value: str) -> Iterator[None]:
    """Let another session hold a lock on rows of another's table."""
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute(f"SELECT 1 FROM {table} WHERE {column} = %s FOR UPDATE", [value])
            assert cursor.fetchall()
        yield
    finally:
        other.rollback()
        other.close()


class ApiClient(Client):
    """Sends JSON with an API key."""

    def __init__(self, key: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if key is not None:
            self.defaults["HTTP_X_API_KEY"] = key

    def cancel(self, run_ids: Any, **headers: str) -> HttpResponse:
        """Ask to cancel runs; ``headers`` are spelt with underscores."""
        return self.send("/v1/runs/cancel", {"run_ids": run_ids}, **headers)

    def send(
        self, path: str, body: Any, content_type: str = "application/json", **headers: str
    ) -> HttpResponse:
        """Post a body: bytes and strings as they are, anything else as JSON."""
        data = body if isinstance(body, bytes | str) else json.dumps(body)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.generic("POST", path, data, content_type=content_type, headers=sent)


def found(check: Any) -> list[str]:
    """Return the numbers of what a check finds; each finding has a hint."""
    messages = check()
    assert all(message.hint for message in messages)
    return [message.id.removeprefix("django_run_cancel.") for message in messages]
