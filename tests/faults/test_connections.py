"""Sessions that end at each statement of a request, and servers that refuse to write.

The client gets JSON: 503, or the true answer. Never 500, and never an answer that is not true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db import Error, connection

from django_run_cancel.models import Cancellation
from django_run_cancel.testing import DummyBackend
from tests.faults.disturbances import end_session, every_step, needs_server, through_proxy
from tests.faults.helpers import empty_tables, finish_everything
from tests.faults.invariants import assert_rows_sound
from tests.helpers import (
    IS_SQLITE,
    ApiClient,
    ids,
    locked_elsewhere,
    make_run,
    make_runs,
    statuses,
)

pytestmark = pytest.mark.django_db(transaction=True)

AWAY = (503, {"detail": "The database is busy or unreachable; please try again"})


class Family:
    """Runs that are made anew for every request: one with a child, one alone, one finished."""

    def prepare(self) -> None:
        empty_tables()
        parent = make_run("running")
        self.active = [parent, parent.create_child(status="queued"), make_run()]
        finished = make_run("running")
        finished.mark_completed()
        self.cancelled = ids([parent, self.active[2]])
        self.failed = ids([finished])

    def ask(self, client: ApiClient) -> tuple[int, Any]:
        response = client.cancel([*self.cancelled, *self.failed], Idempotency_Key="a")
        assert response["Content-Type"] == "application/json"
        return response.status_code, response.json()

    @property
    def true_answer(self) -> tuple[int, Any]:
        return 200, {"cancelled": self.cancelled, "failed": self.failed}

    def are_cancelled(self) -> bool:
        now = statuses(*self.active)
        assert now in (["cancelled"] * 3, ["running", "queued", "queued"])
        return now[0] == "cancelled"


def check_every_step(client: ApiClient, disturb: Callable[[], object]) -> set[tuple[int, bool]]:
    """Disturb a request before each of its steps in turn, and then ask again.

    Returns:
        The statuses of the answers, each with whether the runs were cancelled.
    """
    seen = set()
    family = Family()
    for answer in every_step(family.prepare, lambda: family.ask(client), disturb):
        done = family.are_cancelled()
        assert answer in (AWAY, family.true_answer)
        assert done or answer == AWAY
        assert_rows_sound()
        seen.add((answer[0], done))
        # With the same idempotency key: whether or not there is a record, now there is one.
        assert family.ask(client) == family.true_answer
        assert Cancellation.objects.count() == 1
        assert_rows_sound()
    finish_everything()
    assert_rows_sound(everything_done=True)
    return seen


@needs_server
def test_session_ended_before_each_statement(api: ApiClient, dummy: DummyBackend) -> None:
    assert check_every_step(api, end_session) == {(503, False), (200, True)}


@needs_server
def test_answer_of_each_statement_lost(api: ApiClient, dummy: DummyBackend) -> None:
    with through_proxy() as lose_answer:
        # The last one is that of a COMMIT: nobody can know, and the client has to ask again.
        assert check_every_step(api, lose_answer) == {(503, False), (503, True), (200, True)}


@contextmanager
def told_to_server(statements: dict[str, tuple[str, str]]) -> Iterator[None]:
    """Tell the session of this thread something, and afterwards something else."""
    before, after = statements[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(before)
    try:
        yield
    finally:
        with suppress(Error), connection.cursor() as cursor:
            cursor.execute(after)
        connection.close()


READ_ONLY = {
    "postgresql": (
        "SET default_transaction_read_only = on",
        "SET default_transaction_read_only = off",
    ),
    "mysql": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION TRANSACTION READ WRITE"),
    "sqlite": ("PRAGMA query_only = on", "PRAGMA query_only = off"),
}

HURRIED = {
    "postgresql": ("SET statement_timeout = '300ms'", "SET statement_timeout = 0"),
    "mysql": ("SET SESSION max_statement_time = 0.3", "SET SESSION max_statement_time = 0"),
}

PATHS = ["/v1/runs/cancel", "/v1/runs/{}/cancel", "/v1/cancellations"]


@pytest.mark.parametrize("path", PATHS)
def test_read_only(api: ApiClient, path: str) -> None:
    run = make_run()
    body = {"run_ids": [run.run_id]} if "{}" not in path else {}
    with told_to_server(READ_ONLY):
        response = api.send(path.format(run.run_id), body)
        assert (response.status_code, response.json()) == AWAY
        response = api.get(f"/v1/runs/{run.run_id}")
        assert (response.status_code, response.json()["status"]) == (200, "queued")
    assert statuses(run) == ["queued"]
    assert_rows_sound()


@needs_server
def test_statement_timeout(api: ApiClient) -> None:
    family = Family()
    family.prepare()
    api.get("/v1/runs")  # the use of the key is noted
    with told_to_server(HURRIED), locked_elsewhere(family.active[1]):
        assert family.ask(api) == AWAY
    assert not family.are_cancelled()
    assert family.ask(api) == family.true_answer
    assert_rows_sound()


@pytest.mark.skipif(not IS_SQLITE, reason="The disk of a PostgreSQL is filled in test_server.")
def test_no_space_left(api: ApiClient, dummy: DummyBackend) -> None:
    runs = make_runs(100, metadata={"text": "x" * 200})
    api.get("/v1/runs")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")  # or there is space that earlier tests have left
        cursor.execute("PRAGMA page_count")
        (pages,) = cursor.fetchone()
        cursor.execute("PRAGMA max_page_count")
        (limit,) = cursor.fetchone()
        cursor.execute(f"PRAGMA max_page_count = {pages}")
        response = api.cancel(ids(runs))
        assert (response.status_code, response.json()) == AWAY
        assert set(statuses(*runs)) == {"queued"}
        assert_rows_sound()
        cursor.execute(f"PRAGMA max_page_count = {limit}")
    assert api.cancel(ids(runs)).json()["cancelled"] == ids(runs)
    finish_everything()
    assert_rows_sound(everything_done=True)
