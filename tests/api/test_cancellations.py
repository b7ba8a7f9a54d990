"""Cancellations in progress: how far they are, aborting, retrying, and their items by state."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.cancellation import chunks
from django_run_cancel.cancellation.chunks import advance_chunk
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from tests.api.helpers import (
    CANCELLATIONS,
    UNKNOWN,
    assert_sound,
    finish_bulk,
    key_client,
    logged_in,
    make_user,
    read_cancellation,
    start_bulk,
    statements,
    walk,
)
from tests.helpers import ApiClient, ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db

QUEUED = {"filter": {"status": "queued"}}


@pytest.fixture
def ten_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each transaction cancel ten runs, however fast the machine is."""

    class Fixed(chunks.Pace):
        def adapt(self, count: int, seconds: float) -> None:
            pass

    fixed = Fixed()
    fixed.size = 10
    monkeypatch.setattr(chunks, "_pace", fixed)


class TestProgress:
    @pytest.mark.usefixtures("ten_at_once")
    def test_while_it_runs(self, api: ApiClient) -> None:
        make_runs(30)
        record = start_bulk(api, QUEUED)
        assert (record["rate"], record["estimated_end"]) == (None, None)
        pk = Cancellation.objects.get().pk
        earlier = timezone.now() - timedelta(hours=1)  # however slow the machine is
        Cancellation.objects.update(requested_at=earlier)
        assert advance_chunk(pk) == 10
        running = read_cancellation(api, record)
        assert running["state"] == "running"
        assert (running["processed_count"], running["cancelled_count"]) == (10, 10)
        assert running["rate"] == pytest.approx(10 / 3600, rel=0.5)
        end = datetime.fromisoformat(running["estimated_end"])
        assert (end - earlier) / timedelta(hours=3) == pytest.approx(1, rel=0.5)
        finish_bulk()
        done = read_cancellation(api, record)
        assert (done["state"], done["processed_count"], done["estimated_end"]) == (
            "completed",
            30,
            None,
        )
        assert datetime.fromisoformat(done["finished_at"]) > earlier

    def test_list_in_one_statement(self, api: ApiClient) -> None:
        runs = make_runs(5)
        for run in runs:
            start_bulk(api, {"run_ids": [run.run_id]})
        api.cancel(["x"])
        with statements() as seen:
            rows = assert_sound(api.get(CANCELLATIONS), 200)["results"]
        assert [row["state"] for row in rows] == ["completed"] + ["pending"] * 5
        assert len(seen) == 3, seen  # the key, the page, and the chunks of all


@pytest.mark.usefixtures("ten_at_once")
class TestAbort:
    def test_midway(self, api: ApiClient) -> None:
        runs = make_runs(30)
        record = start_bulk(api, QUEUED)
        advance_chunk(Cancellation.objects.get().pk)
        path = f"{CANCELLATIONS}/{record['cancellation_id']}/abort"
        for client in (key_client(read_only=True), logged_in(make_user("view"))):
            assert_sound(client.send(path, ""), 403)
        assert_sound(api.send(path, "[]"), 422)
        answer = assert_sound(api.send(path, ""), 200)
        assert (answer["state"], answer["cancelled_count"]) == ("aborted", 10)
        assert answer["finished_at"] is not None
        finish_bulk()
        assert sorted(statuses(*runs)) == ["cancelled"] * 10 + ["queued"] * 20
        assert read_cancellation(api, record)["state"] == "aborted"
        detail = "Nothing is left to abort: it is aborted"
        assert assert_sound(api.send(path, ""), 409) == {"detail": detail}

    def test_nothing_left(self, api: ApiClient) -> None:
        make_run()
        record = start_bulk(api, QUEUED)["cancellation_id"]
        finish_bulk()
        for each in (record, api.cancel(["x"])["Cancellation-Id"]):
            answer = assert_sound(api.send(f"{CANCELLATIONS}/{each}/abort", "{}"), 409)
            assert answer == {"detail": "Nothing is left to abort: it is completed"}
        assert_sound(api.send(f"{CANCELLATIONS}/can_1/abort", ""), 404)


def test_retry(api: ApiClient) -> None:
    run = make_run("running")
    record = start_bulk(api, {"run_ids": [run.run_id]})
    CancellationChunk.objects.update(state="failed", attempts=3, failed_count=1)
    finish_bulk()
    assert read_cancellation(api, record)["state"] == "failed"
    path = f"{CANCELLATIONS}/{record['cancellation_id']}/retry"
    answer = assert_sound(api.send(path, ""), 200)
    assert (answer["state"], answer["failed_count"]) == ("running", 0)
    finish_bulk()
    assert statuses(run) == ["cancelled"]
    assert read_cancellation(api, record)["state"] == "completed"
    CancellationItem.objects.update(delivery="failed")
    assert assert_sound(api.send(path, ""), 200)["state"] == "completed"
    assert CancellationItem.objects.get().delivery == "pending"


class TestItems:
    def found(self, client: ApiClient, path: str, **query: Any) -> list[str]:
        rows = assert_sound(client.get(path, query), 200)["results"]
        return [row["run_id"] for row in rows]

    def test_filters(self, api: ApiClient) -> None:
        queued, running, done = make_run(), make_run("running"), make_run("failed")
        before = make_run("cancelled", stop_state="killed")
        asked = ids([queued, running, done, before])
        path = f"{CANCELLATIONS}/{api.cancel([*asked, UNKNOWN])['Cancellation-Id']}/items"
        # A run that was not found is not the one that has its id since.
        make_run("cancelled", run_id=UNKNOWN, stop_state="killed")
        for query, expected in (
            ({"outcome": "cancelled"}, [queued, running]),
            ({"outcome": ["already_finished", "already_cancelled"]}, [done, before]),
            ({"stop_state": "stopping"}, [running]),
            ({"stop_state": ["killed", "never_started"]}, [queued, before]),
            ({"stop_state": "killed", "outcome": "cancelled"}, []),
            ({"stop_state": "presumed"}, []),
        ):
            assert self.found(api, path, **query) == ids(expected), query
        assert self.found(api, path, outcome="not_found") == [UNKNOWN]
        get_run_model()._base_manager.filter(pk=running.pk).update(stop_state="acknowledged")
        assert self.found(api, path, stop_state="acknowledged") == [running.run_id]

    def test_pages(self, api: ApiClient) -> None:
        runs = [make_run("running" if n % 2 else "queued") for n in range(10)]
        path = f"{CANCELLATIONS}/{api.cancel(ids(runs))['Cancellation-Id']}/items"
        pages = walk(api, f"{path}?stop_state=stopping&outcome=cancelled&page_size=2")
        assert [[row["run_id"] for row in page] for page in pages] == [
            ids([runs[1], runs[3]]),
            ids([runs[5], runs[7]]),
            ids([runs[9]]),
        ]

    @pytest.mark.parametrize("name", ["outcome", "stop_state"])
    def test_no_such_value(self, name: str, api: ApiClient) -> None:
        path = f"{CANCELLATIONS}/{api.cancel(['x'])['Cancellation-Id']}/items"
        for value in ("", "runing", "\0"):
            (entry,) = assert_sound(api.get(path, {name: value}), 422)["detail"]
            assert (entry["type"], entry["loc"]) == ("enum", ["query", name])
        rival = key_client("rival")
        assert_sound(rival.get(path, {name: "runing"}), 404)
