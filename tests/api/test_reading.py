"""Reading runs, cancellations and their items; retrying failed deliveries."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from django.urls import reverse

from django_run_cancel.models import CancellationItem, get_run_model
from tests.api.helpers import (
    BULK,
    RUN_FIELDS,
    UNKNOWN,
    assert_sound,
    cancel_one,
    key_client,
    logged_in,
    make_user,
)
from tests.helpers import ApiClient, ids, make_run

pytestmark = pytest.mark.django_db


def test_run__detail(api: ApiClient) -> None:
    parent = make_run("running")
    run = parent.create_child(run_type="workflow", metadata={"a": ["é", None]})
    answer = assert_sound(api.get(f"/v1/runs/{run.run_id}"), 200)
    assert set(answer) == RUN_FIELDS
    assert answer["run_id"].startswith("wr_")
    assert answer["metadata"] == {"a": ["é", None]}
    assert (answer["parent_run_id"], answer["cancellation_id"]) == (parent.run_id, None)
    assert answer["stop_state"] == ""
    assert assert_sound(api.get(f"/v1/runs/{parent.run_id}"), 200)["parent_run_id"] is None
    assert_sound(api.get(f"/v1/runs/{run.run_id.upper()}"), 404)


@pytest.mark.parametrize("run_id", ["a/b", "a b", "tsk.1~2", "é", "a%2Fb", "?#", "cancel", "a/"])
def test_run__id_of_the_hosts_making(run_id: str, api: ApiClient) -> None:
    """Ids are the host's to choose; only a slash at the end cannot be told from a path's."""
    make_run(run_id=run_id)
    path = reverse("django_run_cancel:run", args=[run_id])
    if run_id == "cancel":  # taken by the bulk endpoint
        assert_sound(api.get(path), 405)
    elif run_id == "a/":
        assert_sound(api.get(path), 404)
    else:
        assert assert_sound(api.get(path), 200)["run_id"] == run_id
        path = reverse("django_run_cancel:cancel-run", args=[run_id])
        assert assert_sound(api.send(path, b""), 200)["status"] == "cancelled"
    assert assert_sound(api.cancel([run_id]), 200)["cancelled"] == [run_id]


def test_any__trailing_slash(api: ApiClient) -> None:
    run = make_run()
    record = api.cancel([UNKNOWN])["Cancellation-Id"]
    gets = [
        "/v1/runs",
        f"/v1/runs/{run.run_id}",
        "/v1/cancellations",
        f"/v1/cancellations/{record}",
        f"/v1/cancellations/{record}/items",
    ]
    for path in gets:
        assert assert_sound(api.get(f"{path}/"), 200) == api.get(path).json()
    for path in (BULK, f"/v1/runs/{run.run_id}/cancel"):
        assert_sound(api.send(f"{path}/", {"run_ids": []}), 200)


def test_cancellation__detail(api: ApiClient) -> None:
    run = make_run()
    before = datetime.now(UTC)
    record = cancel_one(api, run.run_id, reason="why")["Cancellation-Id"]
    answer = assert_sound(api.get(f"/v1/cancellations/{record}"), 200)
    requested_at = datetime.fromisoformat(answer.pop("requested_at"))
    assert before <= requested_at <= datetime.now(UTC)
    assert answer.pop("requested_by").startswith("tests (rc_")
    assert answer == {
        "cancellation_id": record,
        "source": "api",
        "ip_address": "127.0.0.1",
        "request_id": "",
        "reason": "why",
        "force": False,
        "state": "completed",
        "finished_at": None,
        "selection": None,
        "total_count": 1,
        "processed_count": 1,
        "cancelled_count": 1,
        "already_count": 0,
        "failed_count": 0,
        "cascaded_count": 0,
        "rate": None,
        "estimated_end": None,
    }


def test_cancellation__of_a_user() -> None:
    client = logged_in(make_user("cancel_run"))
    record = client.cancel(["tsk_1"])["Cancellation-Id"]
    answer = assert_sound(client.get(f"/v1/cancellations/{record}"), 200)
    assert answer["requested_by"] == "ann"
    # No tenant is known, so that no key sees it.
    assert_sound(key_client().get(f"/v1/cancellations/{record}"), 404)


def test_items__evidence(api: ApiClient) -> None:
    queued, running, done = make_run(), make_run("running"), make_run("completed")
    child = running.create_child(status="running")
    asked = [*ids([running, done, queued]), UNKNOWN, "a\0b"]
    record = api.cancel(asked)["Cancellation-Id"]
    rows = assert_sound(api.get(f"/v1/cancellations/{record}/items"), 200)["results"]
    told = [
        (row["run_id"], row["outcome"], row["via"], row["previous_status"], row["stop_state"])
        for row in rows
    ]
    assert told == [
        (running.run_id, "cancelled", "requested", "running", "stopping"),
        (done.run_id, "already_finished", "requested", "completed", ""),
        (queued.run_id, "cancelled", "requested", "queued", "never_started"),
        (UNKNOWN, "not_found", "requested", "", ""),
        ("a\\x00b…", "not_found", "requested", "", ""),
        (child.run_id, "cancelled", "cascade", "running", "stopping"),
    ]
    assert [row["delivery"] for row in rows[:3]] == ["pending", "not_needed", "pending"]
    assert [row["stopped_at"] is not None for row in rows] == [False, False, True] + [False] * 3
    assert {row["attempts"] for row in rows} == {0}

    runs = get_run_model()._default_manager
    runs.filter(run_id=running.run_id).update(
        stop_state="acknowledged", stopped_at=datetime.now(UTC)
    )
    runs.filter(run_id=child.run_id).delete()
    rows = api.get(f"/v1/cancellations/{record}/items").json()["results"]
    assert [row["stop_state"] for row in rows] == ["acknowledged", "", "never_started", "", "", ""]


def test_items__run_created_after_it_was_not_found(api: ApiClient) -> None:
    """Evidence belongs to the run that was cancelled, not to a later one of the same id."""
    record = api.cancel(["tsk_1"])["Cancellation-Id"]
    make_run("cancelled", run_id="tsk_1", stop_state="killed")
    (row,) = api.get(f"/v1/cancellations/{record}/items").json()["results"]
    assert row["stop_state"] == ""


def test_retry__failed_deliveries(api: ApiClient) -> None:
    runs = [make_run("running") for _ in range(3)]
    records = [api.cancel([run.run_id])["Cancellation-Id"] for run in runs]
    CancellationItem.objects.update(delivery="failed", attempts=10, next_attempt_at=None)
    CancellationItem.objects.filter(run_id=runs[1].run_id).update(delivery="delivered")
    for record in records[:2]:
        response = api.send(f"/v1/cancellations/{record}/retry", "")
        assert response.status_code == 200
        assert response.json()["cancellation_id"] == record
    assert list(CancellationItem.objects.order_by("pk").values_list("delivery", "attempts")) == [
        ("pending", 0),
        ("delivered", 10),
        ("failed", 10),
    ]


def test_retry__not_for_everybody() -> None:
    run = make_run("running", tenant="acme")
    acme = key_client("acme")
    path = f"/v1/cancellations/{acme.cancel([run.run_id])['Cancellation-Id']}/retry"
    CancellationItem.objects.update(delivery="failed")
    for client, body, status in (
        (key_client(), "", 404),
        (key_client("acme", read_only=True), "", 403),
        (acme, "[]", 422),
    ):
        assert_sound(client.send(path, body), status)
    assert CancellationItem.objects.get().delivery == "failed"
    assert_sound(acme.send(path, "{}"), 200)
    assert CancellationItem.objects.get().delivery == "pending"


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("ValueError: no host db7.internal", "ValueError: see the log"),
        ("app.errors.QuotaExceeded: tenant b", "app.errors.QuotaExceeded: see the log"),
        ("TimeoutError", "TimeoutError: see the log"),
        ("No heartbeat for 60 seconds.", "No heartbeat for 60 seconds."),
        ("Disk full: free some space", "Disk full: free some space"),
        ("", ""),
    ],
)
def test_run__what_keys_read_of_errors(
    reason: str, shown: str, api: ApiClient, settings: Any
) -> None:
    run = make_run("failed", failure_reason=reason)
    user = logged_in(make_user("cancel_run"))

    def read(client: Any) -> Any:
        return client.get(f"/v1/runs/{run.run_id}").json()["failure_reason"]

    assert read(api) == shown
    assert read(user) == reason
    settings.RUN_CANCEL_EXPOSE_ERRORS = True
    assert read(api) == reason
