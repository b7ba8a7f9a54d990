"""Nothing tells a foreign id from an unknown one, and nothing shows what is another tenant's."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.http import HttpResponse

from django_run_cancel.models import Cancellation, CancellationItem
from tests.api.helpers import (
    BULK,
    CANCELLATIONS,
    UNKNOWN,
    assert_sound,
    cursor,
    key_client,
    start_bulk,
    statements,
)
from tests.helpers import ApiClient, ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db

UNKNOWN_CANCELLATION = "can_" + "0" * 32
VOLATILE = re.compile(r"can_[0-9a-f]{32}|\d{4}-\d\d-\d\d[T ][\d:.]+(Z|\+00:00)?")


def ask(client: ApiClient, method: str, path: str, body: Any = None) -> HttpResponse:
    return client.get(path) if method == "GET" else client.send(path, body or b"")


def shape(response: HttpResponse, run_id: str) -> tuple[int, str, dict[str, str]]:
    """Return the answer without the id itself and without what differs between any two."""
    headers = {name: VOLATILE.sub("…", value) for name, value in response.headers.items()}
    body = VOLATILE.sub("…", response.content.decode()).replace(run_id, "ID")
    return response.status_code, body, headers


@pytest.mark.parametrize("status", ["running", "completed", "cancelled"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/runs/{}", None),
        ("GET", "/v1/runs?parent={}", None),
        ("POST", "/v1/runs/{}/cancel", None),
        ("POST", "/v1/runs/{}/cancel", {"reason": "why"}),
        ("POST", BULK, "{}"),
        ("POST", "/v1/cancellations", "{}"),
        ("POST", "/v1/cancellations", "{}, dry_run"),
        ("POST", "/v1/cancellations", {"filter": {"parent": ""}}),
        ("POST", "/v1/cancellations", {"filter": {"ancestor": ""}}),
    ],
)
def test_run__foreign_is_like_unknown(method: str, path: str, body: Any, status: str) -> None:
    foreign = make_run(status, tenant="rival")
    make_run(parent=foreign, tenant="rival")
    client = key_client("acme")
    client.get("/v1/runs")  # from here on the use of the key need not be noted

    answers = []
    for run_id in (foreign.run_id, UNKNOWN):
        sent = {"run_ids": [run_id, "tsk_1"]} if body == "{}" else body
        with statements() as seen:
            response = ask(client, method, path.format(run_id), sent)
        record = response.headers.get("Cancellation-Id")
        listed = client.get(f"/v1/cancellations/{record}/items") if record else response
        counted = client.get(f"/v1/cancellations/{record}") if record else response
        each = [shape(answer, run_id) for answer in (response, listed, counted)]
        answers.append((each, [query.split("(")[0][:40] for query in seen]))
    assert answers[0] == answers[1]
    assert statuses(foreign) == [status]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", "/v1/cancellations/{}"), ("GET", "/v1/cancellations/{}/items")],
        *[("POST", "/v1/cancellations/{}/abort"), ("POST", "/v1/cancellations/{}/retry")],
    ],
)
def test_cancellation__foreign_is_like_unknown(method: str, path: str) -> None:
    run = make_run(tenant="rival")
    rival = key_client("rival")
    foreign = start_bulk(rival, {"run_ids": [run.run_id]})["cancellation_id"]
    client = key_client("acme")
    client.get("/v1/runs")
    answers = []
    for record in (foreign, UNKNOWN_CANCELLATION):
        with statements() as seen:
            response = ask(client, method, path.format(record))
        answers.append((shape(response, record), len(seen)))
    assert answers[0] == answers[1]
    assert answers[0][0][0] == 404
    assert rival.get(f"/v1/cancellations/{foreign}").json()["state"] == "pending"


def test_lists__only_own() -> None:
    own, foreign = make_runs(3, tenant="acme"), make_runs(3, tenant="rival")
    clients = {"acme": key_client("acme"), "rival": key_client("rival"), "": key_client()}
    for client in clients.values():
        client.cancel(ids(own) + ids(foreign))
    for tenant, runs in (("acme", own), ("rival", foreign), ("", [])):
        client = clients[tenant]
        listed = client.get("/v1/runs").json()["results"]
        assert {run["run_id"] for run in listed} == set(ids(runs))
        (record,) = client.get("/v1/cancellations").json()["results"]
        assert record["cancelled_count"] == len(runs)
        assert record["failed_count"] == 6 - len(runs)
        path = f"/v1/cancellations/{record['cancellation_id']}/items"
        told = {item["run_id"]: item for item in client.get(path).json()["results"]}
        assert set(told) == set(ids(own) + ids(foreign))
        for run_id, item in told.items():
            mine = run_id in ids(runs)
            assert item["outcome"] == ("cancelled" if mine else "not_found")
            assert bool(item["stop_state"]) is mine
            assert bool(item["previous_status"]) is mine


def test_lists__another_tenants_cursor() -> None:
    """A cursor is a place in time, and shows nothing."""
    make_runs(4, tenant="rival")
    own = make_runs(2, tenant="acme")
    page = key_client("rival").get("/v1/runs?page_size=2").json()
    client = key_client("acme")
    tokens = [page["next"].partition("cursor=")[2].partition("&")[0], cursor(o="1"), cursor(r="1")]
    for token in tokens:
        results = assert_sound(client.get(f"/v1/runs?cursor={token}"), 200)["results"]
        assert {run["run_id"] for run in results} <= set(ids(own))


def test_items__another_cancellations_cursor() -> None:
    """The key of an item in a cursor reaches only items of the cancellation in the path."""
    theirs = key_client("rival").cancel(["tsk_1", "tsk_2"])["Cancellation-Id"]
    client = key_client("acme")
    mine = client.cancel(["tsk_3"])["Cancellation-Id"]
    first = CancellationItem.objects.filter(cancellation__cancellation_id=theirs).earliest("pk")
    response = client.get(f"/v1/cancellations/{mine}/items", {"cursor": cursor(p=str(first.pk))})
    assert [item["run_id"] for item in assert_sound(response, 200)["results"]] == ["tsk_3"]


def test_filter__parent_of_another_tenant() -> None:
    foreign = make_run(tenant="rival")
    make_run(parent=foreign, tenant="rival")
    parent = make_run(tenant="acme")
    child = make_run(parent=parent, tenant="acme")
    client = key_client("acme")
    assert client.get("/v1/runs", {"parent": foreign.run_id}).json()["results"] == []
    (found,) = client.get("/v1/runs", {"parent": parent.run_id}).json()["results"]
    assert (found["run_id"], found["parent_run_id"]) == (child.run_id, parent.run_id)


def test_filter__ancestor_of_another_tenant() -> None:
    """The tree of a run out of reach is not walked: its size would show in the time."""
    foreign = make_run(tenant="rival")
    below = make_run(parent=foreign, tenant="rival")
    own = make_run(parent=below, tenant="acme")
    make_run(parent=own, tenant="acme")
    client = key_client("acme")
    for ancestor, count in ((foreign, 0), (below, 0), (own, 1)):
        body = {"filter": {"ancestor": ancestor.run_id}, "dry_run": True}
        assert assert_sound(client.send(CANCELLATIONS, body), 200)["count"] == count


def test_answers__no_cache_keeps_them(settings: Any) -> None:
    """Django's cache for a whole site knows callers by their cookies, not by their keys."""
    settings.MIDDLEWARE = [
        "django.middleware.cache.UpdateCacheMiddleware",
        *settings.MIDDLEWARE,
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
    run = make_run(tenant="acme")
    own = key_client("acme")
    record = own.cancel([run.run_id])["Cancellation-Id"]
    for path in (
        *("/v1/runs", f"/v1/runs/{run.run_id}", "/v1/cancellations"),
        *(f"/v1/cancellations/{record}", f"/v1/cancellations/{record}/items"),
    ):
        told = assert_sound(own.get(path), 200)
        assert_sound(ApiClient().get(path), 403)
        assert key_client("rival").get(path).json() != told


def test_cancel__key_of_another_tenant() -> None:
    run = make_run(tenant="acme")
    for tenant in ("rival", "", "ACME", "acm"):
        client = key_client(tenant)
        assert assert_sound(client.cancel([run.run_id]), 200)["failed"] == [run.run_id]
        assert_sound(client.send(f"/v1/runs/{run.run_id}/cancel", b""), 404)
    assert statuses(run) == ["queued"]
    assert set(Cancellation.objects.values_list("tenant", flat=True)) == {
        "rival",
        "",
        "ACME",
        "acm",
    }
