"""Proofs of which connection waits for which, and what the API answers when it cannot wait.

The proofs have no luck in them: they watch one connection wait for another.
"""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction
from django.http import HttpResponse

from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import Outcome, RunStatus
from tests.cancellation.threads import Held, Workers, cancel, check_decided_once, isolated
from tests.helpers import IS_MYSQL, IS_POSTGRESQL, IS_SQLITE, ApiClient, make_run, statuses

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("fate", "outcome"),
    [("commit", Outcome.ALREADY_CANCELLED), ("rollback", Outcome.CANCELLED)],
)
def test_second_cancellation_waits_for_the_first(
    workers: Workers, announced: list[str], fate: str, outcome: Outcome
) -> None:
    run = make_run()
    first = Held(workers, lambda: cancel([run.run_id]))
    second = workers.start(lambda: cancel([run.run_id]))
    second.until_blocked()
    assert announced == []
    first.end(fate)
    assert [item.outcome for item in second.result().items] == [outcome]
    assert announced == [run.run_id]


def test_cancellation_waits_for_a_completion(workers: Workers, announced: list[str]) -> None:
    run = make_run(RunStatus.RUNNING)
    completion = Held(workers, run.mark_completed)
    cancellation = workers.start(lambda: cancel([run.run_id]))
    cancellation.until_blocked()
    completion.end("commit")
    assert cancellation.result().failed == [run.run_id]
    assert (statuses(run), announced) == ([RunStatus.COMPLETED], [])


def test_completion_waits_for_a_cancellation(workers: Workers) -> None:
    run = make_run(RunStatus.RUNNING)
    cancellation = Held(workers, lambda: cancel([run.run_id]))
    # In a transaction, since SQLite has no other way to wait for one.
    completion = workers.start(transaction.atomic(run.mark_completed))
    completion.until_blocked()
    cancellation.end("commit")
    assert isinstance(completion.error(), TransitionNotAllowed)
    assert statuses(run) == [RunStatus.CANCELLED]


@isolated
@pytest.mark.parametrize(
    ("through", "fate"),
    [("parent", "commit"), ("finished parent", "commit"), ("parent", "rollback")],
)
def test_new_child_waits_for_a_cancellation(
    workers: Workers, through: str, fate: str, isolation: list[str]
) -> None:
    top = parent = make_run(RunStatus.RUNNING)
    if through == "finished parent":
        parent = make_run(RunStatus.COMPLETED, parent=top)
    cancellation = Held(workers, lambda: cancel([top.run_id]), isolation)
    creation = workers.start(parent.create_child, isolation)
    creation.until_blocked()
    cancellation.end(fate)
    if fate == "rollback":
        assert statuses(creation.result()) == [RunStatus.CREATED]
    else:
        assert isinstance(creation.error(), RunCancelled)
        assert not get_run_model()._default_manager.filter(parent=parent, status="created")


@isolated
@pytest.mark.parametrize("through", ["parent", "finished parent"])
def test_cancellation_waits_for_a_new_child_and_takes_it_along(
    workers: Workers, announced: list[str], through: str, isolation: list[str]
) -> None:
    top = parent = make_run(RunStatus.RUNNING)
    if through == "finished parent":
        parent = make_run(RunStatus.COMPLETED, parent=top)

    def create() -> list[Any]:
        child = parent.create_child()
        return [child, child.create_child()]

    creation = Held(workers, create, isolation)
    cancellation = workers.start(lambda: cancel([top.run_id]), isolation)
    cancellation.until_blocked()
    children = creation.end("commit")
    result = cancellation.result()
    assert result.cancelled == [top.run_id]
    assert set(statuses(top, *children)) == {RunStatus.CANCELLED}
    check_decided_once([result], announced)


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_new_child_waits_for_the_deletion_of_its_parent(workers: Workers) -> None:
    model = get_run_model()
    parent = make_run(parent=make_run())
    deletion = Held(workers, model._default_manager.filter(pk=parent.pk).delete)
    creation = workers.start(parent.create_child)
    creation.until_blocked()
    deletion.end("commit")
    assert isinstance(creation.error(), model.DoesNotExist)


# What the endpoints answer when they cannot have the lock

# MariaDB counts in whole seconds, with 0 for not at all.
if IS_POSTGRESQL:
    IMPATIENT = ["SET lock_timeout = '50ms'"]
elif IS_MYSQL:
    IMPATIENT = ["SET SESSION innodb_lock_wait_timeout = 0"]
else:
    IMPATIENT = ["PRAGMA busy_timeout = 50"]


@pytest.mark.parametrize(("endpoint", "key_is_new"), [("many", False), ("one", True)])
def test_locked_database_is_answered_with_503(
    workers: Workers, announced: list[str], api: ApiClient, endpoint: str, key_is_new: bool
) -> None:
    run = make_run()
    if not key_is_new:
        api.get("/v1/runs")  # notes that the key is in use: nothing is left to write but the run
    body = {"run_ids": [run.run_id]} if endpoint == "many" else {}
    path = "/v1/runs/cancel" if endpoint == "many" else f"/v1/runs/{run.run_id}/cancel"

    def post() -> HttpResponse:
        return api.send(path, body)

    def hold() -> None:
        get_run_model()._default_manager.filter(pk=run.pk).update(title="held")

    holder = Held(workers, hold)
    worker = workers.start(post, IMPATIENT)
    response = worker.result()
    # On SQLite, that the key is in use could not be noted either.
    assert len(worker.errors) == (2 if key_is_new and IS_SQLITE else 1)
    assert response.status_code == 503
    assert response["Content-Type"] == "application/json"
    assert int(response["Retry-After"]) > 0
    assert set(response.json()) == {"detail"}
    holder.end("commit")
    assert statuses(run) == [RunStatus.QUEUED]
    assert not Cancellation.objects.exists()
    assert not CancellationItem.objects.exists()
    assert announced == []
    assert workers.start(post).result().status_code == 200
    assert statuses(run) == [RunStatus.CANCELLED]
