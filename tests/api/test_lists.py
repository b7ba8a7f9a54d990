"""Pages and filters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from django_run_cancel.models import Cancellation, get_run_model
from tests.api.helpers import assert_sound, logged_in, make_user, statements, walk
from tests.helpers import ApiClient, ids, make_run, make_runs

pytestmark = pytest.mark.django_db

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(minutes: int, **fields: Any) -> Any:
    return make_run(created_at=START + timedelta(minutes=minutes), **fields)


def found(client: ApiClient, **query: Any) -> list[str]:
    answer = assert_sound(client.get("/v1/runs", query), 200)
    return [run["run_id"] for run in answer["results"]]


def flat(pages: list[list[dict[str, Any]]], name: str = "run_id") -> list[str]:
    return [row[name] for page in pages for row in page]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_runs__pages_both_ways(size: int, api: ApiClient) -> None:
    newest_first = ids([at(n) for n in range(7)])[::-1]
    pages = walk(api, f"/v1/runs?page_size={size}")
    assert flat(pages) == newest_first
    assert {len(page) for page in pages[:-1]} <= {size}
    url = f"/v1/runs?page_size={size}"
    while following := api.get(url).json()["next"]:
        url = following
    back = walk(api, url, "previous")
    assert flat(back[::-1]) == newest_first


@pytest.mark.parametrize("who", ["key", "user"])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_runs__ties(who: str, size: int, api: ApiClient) -> None:
    """Runs of one moment: each is on one page, whatever the database does about order."""
    runs = [*make_runs(10, created_at=START), at(-1), at(1)]
    # Rewritten rows move in the table, which is the order that a sort without a key may keep.
    get_run_model()._default_manager.filter(pk__in=[run.pk for run in runs[::2]]).update(title="x")
    client = api if who == "key" else logged_in(make_user("view"))
    seen = flat(walk(client, f"/v1/runs?page_size={size}"))
    assert sorted(seen) == sorted(ids(runs))
    assert (seen[0], seen[-1]) == (runs[-1].run_id, runs[-2].run_id)
    tied = sorted(runs[:10], key=lambda run: run.pk, reverse=True)
    assert set(seen[1:-1]) == set(ids(tied))
    assert flat(walk(client, f"/v1/runs?page_size={size}")) == seen


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/cancellations"])
def test_lists__order_is_total(path: str, api: ApiClient) -> None:
    """Rows of one moment could change places between two pages, if the key did not decide."""
    model = get_run_model() if path == "/v1/runs" else Cancellation
    with statements() as seen:
        api.get(path)
    table, column = model._meta.db_table, model._meta.pk.column
    key = ".".join(map(connection.ops.quote_name, (table, column)))
    assert f"{key} DESC" in seen[-1].partition("ORDER BY")[2]


def test_runs__more_than_a_thousand_ties(api: ApiClient) -> None:
    """DRF's own bound on the offset would show one page for ever."""
    runs = make_runs(1_150, created_at=START)
    seen = flat(walk(api, "/v1/runs?page_size=100"))
    assert len(seen) == len(runs)
    assert set(seen) == set(ids(runs))


def test_runs__created_while_paging(api: ApiClient) -> None:
    runs = [at(n) for n in range(4)]
    first = api.get("/v1/runs?page_size=2").json()
    at(10)
    second = api.get(first["next"]).json()
    assert flat([first["results"], second["results"]]) == ids(runs)[::-1]


def test_runs__default_page(api: ApiClient) -> None:
    make_runs(51)
    pages = walk(api, "/v1/runs")
    assert [len(page) for page in pages] == [50, 1]


def test_lists__answers_have_no_spaces(api: ApiClient) -> None:
    for path in ("/v1/runs", "/v1/cancellations"):
        assert api.get(path).content == b'{"next":null,"previous":null,"results":[]}'


def test_runs__filters(api: ApiClient) -> None:
    old = at(0, status="completed", run_type="workflow")
    parent = at(1, status="running")
    child = at(2, parent=parent)
    grandchild = at(3, parent=child)
    assert found(api) == ids([grandchild, child, parent, old])
    assert found(api, status="completed") == ids([old])
    assert found(api, status=["completed", "running"]) == ids([parent, old])
    assert found(api, status="cancelled") == []
    assert found(api, type="workflow") == ids([old])
    assert found(api, type="WORKFLOW") == []
    assert found(api, type="") == []
    assert found(api, parent=parent.run_id) == ids([child])
    assert found(api, parent=parent.run_id.upper()) == []
    assert found(api, parent="") == []
    assert found(api, created_after="2026-01-01T00:02:00Z") == ids([grandchild, child])
    assert found(api, created_before="2026-01-01T00:02:00Z") == ids([parent, old])
    assert found(api, created_after="2026-01-01T01:02:00+01:00") == ids([grandchild, child])
    assert found(api, created_after="2026-01-01 00:02") == ids([grandchild, child])
    assert found(
        api,
        created_after="2026-01-01T00:01",
        created_before="2026-01-01T00:03",
        status=["queued", "running"],
        type="task",
    ) == ids([child, parent])


def test_runs__offset_with_an_unescaped_plus(api: ApiClient) -> None:
    run = at(0)
    response = api.get("/v1/runs?created_after=2026-01-01T01:00:00+01:00")
    assert [row["run_id"] for row in response.json()["results"]] == [run.run_id]


def test_runs__links_keep_filters(api: ApiClient) -> None:
    for n in range(4):
        at(n, status="running" if n % 2 else "queued")
    pages = walk(api, "/v1/runs?status=running&status=paused&page_size=1")
    assert [run["status"] for page in pages for run in page] == ["running", "running"]


def test_cancellations__pages(api: ApiClient) -> None:
    records = [api.cancel([f"tsk_{n}"])["Cancellation-Id"] for n in range(5)]
    pages = walk(api, "/v1/cancellations?page_size=2")
    assert flat(pages, "cancellation_id") == records[::-1]
    assert [len(page) for page in pages] == [2, 2, 1]


def test_cancellations__ties(api: ApiClient) -> None:
    records = [api.cancel([f"tsk_{n}"])["Cancellation-Id"] for n in range(5)]
    Cancellation.objects.update(requested_at=START)
    seen = flat(walk(api, "/v1/cancellations?page_size=2"), "cancellation_id")
    assert seen == records[::-1]


def test_items__pages_in_order(api: ApiClient) -> None:
    asked = [f"tsk_{n}" for n in range(7, 0, -1)]
    record = api.cancel(asked)["Cancellation-Id"]
    url = f"/v1/cancellations/{record}/items?page_size=3"
    pages = walk(api, url)
    assert flat(pages) == asked
    last = api.get(api.get(url).json()["next"]).json()
    assert flat([api.get(last["previous"]).json()["results"]]) == asked[:3]


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize(
    ("path", "expected"), [("/v1/runs", 2), ("/v1/cancellations", 2), ("items", 4)]
)
def test_lists__constant_number_of_statements(
    path: str, expected: int, count: int, api: ApiClient
) -> None:
    """The key and the page; for items also the cancellation, and the evidence of all runs."""
    parent = make_run("running")
    runs = [parent.create_child() for _ in range(count)]
    records = [api.cancel([run.run_id])["Cancellation-Id"] for run in runs]
    if path == "items":
        records.append(api.cancel(ids(runs))["Cancellation-Id"])
        path = f"/v1/cancellations/{records[-1]}/items"
    with statements() as seen:
        rows = assert_sound(api.get(path), 200)["results"]
    assert len(rows) >= count
    assert len(seen) == expected, seen


def test_detail__constant_number_of_statements(api: ApiClient) -> None:
    run = make_run("running").create_child()
    record = api.cancel([run.run_id])["Cancellation-Id"]
    for path in (f"/v1/runs/{run.run_id}", f"/v1/cancellations/{record}"):
        with statements() as seen:
            assert_sound(api.get(path), 200)
        assert len(seen) == 2
