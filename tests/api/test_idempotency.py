"""The Idempotency-Key header."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connection

from django_run_cancel.models import ApiKey, Cancellation
from tests.api.helpers import assert_sound, key_client, logged_in, make_user
from tests.helpers import ApiClient, ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


def test_bulk__same_answer(api: ApiClient) -> None:
    runs = [make_run(), make_run("completed")]
    asked = [*ids(runs), "tsk_1", "a\0", "\ud800"]
    first = api.cancel(asked, idempotency_key="one")
    later = make_run(run_id="tsk_1")
    second = api.cancel(asked, idempotency_key="one")
    assert second.status_code == first.status_code == 200
    assert second.content == first.content
    assert second["Cancellation-Id"] == first["Cancellation-Id"]
    assert Cancellation.objects.count() == 1
    assert statuses(later) == ["queued"]
    assert statuses(*runs) == ["cancelled", "completed"]


@pytest.mark.parametrize("status", ["queued", "completed", None])
def test_single__same_answer(status: str | None, api: ApiClient) -> None:
    run_id = make_run(status).run_id if status else "tsk_1"
    path = f"/v1/runs/{run_id}/cancel"
    first, second = (api.send(path, {"reason": "x"}, idempotency_key="one") for _ in range(2))
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second["Cancellation-Id"] == first["Cancellation-Id"]


@pytest.mark.parametrize("ids_then", [["tsk_2"], ["tsk_1", "tsk_2"], ["tsk_2", "tsk_1"]])
def test_bulk__other_payload(ids_then: list[str], api: ApiClient) -> None:
    run = make_run(run_id="tsk_2")
    assert_sound(api.cancel(["tsk_1"], idempotency_key="one"), 200)
    (error,) = assert_sound(api.cancel(ids_then, idempotency_key="one"), 422)["detail"]
    assert (error["type"], error["loc"]) == (
        "idempotency_key_reused",
        ["header", "idempotency-key"],
    )
    assert error["input"] == "one"
    assert statuses(run) == ["queued"]
    assert_sound(api.cancel(ids_then, idempotency_key="ONE"), 200)


def test_single__other_reason(api: ApiClient) -> None:
    path = f"/v1/runs/{make_run().run_id}/cancel"
    assert_sound(api.send(path, {"reason": "x"}, idempotency_key="one"), 200)
    assert_sound(api.send(path, {"reason": "y"}, idempotency_key="one"), 422)


def test_bulk__each_caller_has_keys_of_its_own() -> None:
    clients = [
        key_client("acme"),
        key_client("rival"),
        logged_in(make_user("cancel_run", name="ann")),
        logged_in(make_user("cancel_run", name="bob")),
    ]
    for number, client in enumerate(clients):
        for _ in range(2):
            assert_sound(client.cancel([f"tsk_{number}"], idempotency_key="one"), 200)
    assert Cancellation.objects.count() == 4


@pytest.mark.django_db(transaction=True)
def test_bulk__concurrent() -> None:
    """One of them cancels; all give its answer."""
    secret = ApiKey.issue("tests")[1]
    runs = make_runs(5)
    start = threading.Barrier(4)
    answers: list[Any] = []

    def ask() -> None:
        try:
            start.wait(10)
            response = ApiClient(secret).cancel(ids(runs), idempotency_key="one")
            answers.append((response.status_code, response.content, response["Cancellation-Id"]))
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    assert Cancellation.objects.count() == 1
    assert Cancellation.objects.get().items.count() == 5
