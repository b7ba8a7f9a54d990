"""Lists from a streaming replica: however late it is, what decides reads the primary."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections

from django_run_cancel.cancellation import advance_bulk_cancellations, start_bulk_cancellation
from django_run_cancel.delivery import deliver_due
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution
from django_run_cancel.models import ApiKey, Cancellation, get_run_model
from django_run_cancel.testing import DummyBackend
from tests.execution.helpers import cancel, elsewhere, work_on
from tests.faults.helpers import empty_tables, finish_everything
from tests.faults.postgres_server import PostgresServer, own_server, used_by_django
from tests.helpers import IS_POSTGRESQL, ApiClient, ids, make_run, make_runs
from tests.scaling.replica import (
    known_to_django,
    own_replica,
    replica_is_late,
    router_of_the_documentation,
    wait_until_up_to_date,
)

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "replica"])


@pytest.fixture(scope="module", autouse=True)
def primary(django_db_setup: None) -> Iterator[PostgresServer]:
    """Run two servers; Django has to know both of them before the first test."""
    if not IS_POSTGRESQL:
        pytest.skip("Only PostgreSQL is easy to make anew.")
    with (
        own_server(max_connections=20) as primary,
        own_replica(primary) as replica,
        known_to_django(replica),
    ):
        yield primary


@pytest.fixture
def replicated(
    primary: PostgresServer, transactional_db: None, dummy: DummyBackend, settings: Any
) -> Iterator[None]:
    with used_by_django(primary):
        empty_tables()
        wait_until_up_to_date()
        settings.DATABASE_ROUTERS = [router_of_the_documentation()]
        yield
        connections["replica"].close()


@pytest.fixture
def client(replicated: None) -> ApiClient:
    return ApiClient(ApiKey.issue("tests")[1])


def on_primary(run: Any) -> Any:
    run.refresh_from_db(using="default")
    return run


def listed(client: ApiClient) -> dict[str, str]:
    results = client.get("/v1/runs").json()["results"]
    return {run["run_id"]: run["status"] for run in results}


def test_lists_and_details_are_late(client: ApiClient) -> None:
    """What the documentation says does not hold any more: to read one's own writes."""
    run = make_run()
    with replica_is_late():
        later = make_run()
        answer = client.cancel(ids([run, later]))
        assert answer.json() == {"cancelled": ids([run, later]), "failed": []}
        assert listed(client) == {run.run_id: "queued"}
        assert client.get(f"/v1/runs/{run.run_id}").json()["status"] == "queued"
        assert client.get(f"/v1/runs/{later.run_id}").status_code == 404
    wait_until_up_to_date()
    assert set(listed(client).values()) == {"cancelled"}
    assert len(listed(client)) == 2


def test_answers_are_true(client: ApiClient) -> None:
    """Children, repetitions and runs that ended meanwhile are read where they were written."""
    with replica_is_late():
        parent, finished = make_run("running"), make_run("running")
        child = parent.create_child(status="queued")
        finished.mark_completed()
        asked = ids([parent, finished])
        answers = [client.cancel(asked, Idempotency_Key="a").json() for _ in range(2)]
        assert answers == [{"cancelled": [parent.run_id], "failed": [finished.run_id]}] * 2
        assert on_primary(child).status == "cancelled"
        assert Cancellation.objects.using("default").count() == 1
        with pytest.raises(RunCancelled):
            parent.create_child()


def test_command(client: ApiClient) -> None:
    with replica_is_late():
        run = make_run()
        call_command("cancel_runs", run.run_id, requested_by="tests", verbosity=0, yes=True)
        assert on_primary(run).status == "cancelled"


def test_bulk_cancellation(client: ApiClient) -> None:
    with replica_is_late():
        runs = make_runs(30)
        chosen = get_run_model()._base_manager.filter(status="queued")
        start_bulk_cancellation(chosen, requested_by="tests")
        while advance_bulk_cancellations(1):
            pass
        assert {on_primary(run).status for run in runs} == {"cancelled"}


def test_delivery(client: ApiClient, dummy: DummyBackend) -> None:
    with replica_is_late():
        runs = make_runs(3, "running")
        cancel(*runs)
        assert deliver_due().delivered == 3
        assert {request.run_id for request, _ in dummy.stopped} == set(ids(runs))
        finish_everything()


@pytest.mark.usefixtures("watched")
def test_execution(client: ApiClient) -> None:
    with replica_is_late():
        run, refused = make_run(), make_run()
        cancel(refused)
        with pytest.raises(RunCancelled), execution(refused.run_id):
            pytest.fail("A cancelled run was started.")
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            elsewhere(cancel, run)
            work_on(executed)
        assert on_primary(run).stop_state == "acknowledged"


def test_admin(client: ApiClient) -> None:
    """The list is late, and says so by what it shows; the page opens for what the replica has."""
    get_user_model().objects.create_superuser("admin", password="admin")
    client.login(username="admin", password="admin")
    name = get_run_model()._meta.label_lower.replace(".", "/")
    run = make_run(title="known")
    with replica_is_late():
        make_run(title="not yet")
        cancel(run)
        page = client.get(f"/admin/{name}/").content.decode()
        assert "known" in page
        assert "not yet" not in page
