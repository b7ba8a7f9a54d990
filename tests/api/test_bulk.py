"""Bulk cancellations: starting them by ids or filter, previewing them, and repeating a request."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.models import Cancellation
from tests.api.helpers import (
    CANCELLATIONS,
    QUEUED,
    UNKNOWN,
    assert_sound,
    finish_bulk,
    key_client,
    logged_in,
    make_user,
    read_cancellation,
    start_bulk,
)
from tests.helpers import ApiClient, ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


class TestStart:
    def test_filter(self, api: ApiClient) -> None:
        runs, other = make_runs(3), make_run("running")
        child = runs[0].create_child(status="running")
        body = {"filter": {"status": ["queued"], "type": "task"}, "reason": "Wrong prices"}
        response = api.send(CANCELLATIONS, body)
        record = assert_sound(response, 202)
        assert response["Location"] == f"{CANCELLATIONS}/{record['cancellation_id']}"
        assert response["Cancellation-Id"] == record["cancellation_id"]
        assert statuses(*runs) == ["queued"] * 3
        assert read_cancellation(api, record) == record
        assert (record["state"], record["reason"], record["source"]) == (
            "pending",
            "Wrong prices",
            "api",
        )
        assert record["selection"] == {"filter": body["filter"]}
        later = make_run()
        finish_bulk()
        assert set(statuses(*runs, child)) == {"cancelled"}
        assert statuses(other, later) == ["running", "queued"]
        done = read_cancellation(api, record)
        expected = {"state": "completed", "processed_count": 3, "cascaded_count": 1}
        assert {name: done[name] for name in expected} == expected

    def test_ids(self, api: ApiClient) -> None:
        run, done, before = make_run(), make_run("completed"), make_run("cancelled")
        asked = [run.run_id, UNKNOWN, done.run_id, "a\0", before.run_id, run.run_id]
        record = start_bulk(api, {"run_ids": asked})
        assert record["selection"] == {"run_ids": 5}
        finish_bulk()
        record = read_cancellation(api, record)
        names = ("total", "processed", "cancelled", "already", "failed", "cascaded")
        assert [record[f"{name}_count"] for name in names] == [5, 5, 2, 1, 3, 0]
        items = api.get(f"{CANCELLATIONS}/{record['cancellation_id']}/items").json()["results"]
        assert [(item["run_id"], item["outcome"]) for item in items] == [
            (run.run_id, "cancelled"),
            (UNKNOWN, "not_found"),
            (done.run_id, "already_finished"),
            ("a\\x00…", "not_found"),
            (before.run_id, "already_cancelled"),
        ]

    def test_more_ids_than_the_contract_takes(self, api: ApiClient) -> None:
        runs = make_runs(101)
        start_bulk(api, {"run_ids": ids(runs)})
        finish_bulk()
        assert set(statuses(*runs)) == {"cancelled"}

    def test_nothing_to_do(self, api: ApiClient) -> None:
        for body in ({"run_ids": []}, QUEUED):
            record = start_bulk(api, body)
            assert (record["state"], record["total_count"]) == ("completed", 0)

    def test_each_filter(self, api: ApiClient) -> None:
        parent = make_run("running")
        child = parent.create_child(
            title="Crawl", metadata={"n": 1, "x y": None, "s": "Ab", "l": [1]}
        )
        below = child.create_child(backend="rq", run_type="crawl")
        now = timezone.now()
        before, after = (str(now + timedelta(hours=hours)) for hours in (-1, 1))
        for filters, expected in (
            ({"status": "running"}, [parent]),
            ({"status": ["paused", "running", "paused"]}, [parent]),
            ({"type": "crawl"}, [below]),
            ({"parent": parent.run_id}, [child]),
            ({"ancestor": parent.run_id}, [child, below]),
            ({"backend": "rq"}, [below]),
            ({"title": "Crawl"}, [child]),
            *(({"title": title}, []) for title in ("crawl", "Crawl ", "Cräwl")),
            ({"created_after": before, "created_before": after}, [parent, child, below]),
            ({"created_after": after}, []),
            ({"started_after": before, "started_before": after}, []),
            ({"metadata": {"n": 1, "x y": None}}, [child]),
            ({"metadata": {"s": "Ab", "n": 1}}, [child]),
            *(({"metadata": {"s": text}}, []) for text in ("ab", "Ab ", "Äb", None, 1)),
            ({"metadata": {"l": 1}}, []),
            *(({"metadata": {"n": value}}, []) for value in ("1", True, None)),
            *(
                ({"metadata": {key: 1}}, [])
                for key in ("%s", "'", "\\", "$", "*", "[0]", "é🦀", " ")
            ),
        ):
            body = {"filter": filters, "dry_run": True}
            answer = assert_sound(api.send(CANCELLATIONS, body), 200)
            found = [item["run_id"] for item in answer["sample"] if item["via"] == "requested"]
            assert (answer["count"], set(found)) == (len(expected), set(ids(expected))), filters

    @pytest.mark.parametrize(
        "key",
        [
            *["a'b", "a\\b", "\\", "a]b", "[0]", "$", "$.a", "*", "**", "a.b", " ", "%s", "%(x)s"],
            *[
                "é",
                "🦀",
                "\n",
                "\x01",
                "\u202e",
                "__",
                "a__exact",
                "a-b",
                "1.0",
                "?",
                ":a",
                "x" * 255,
            ],
        ],
    )
    def test_any_key_of_the_metadata(self, key: str, api: ApiClient) -> None:
        for value in (1, "x", None):
            run = make_run(metadata={key: value, "a": 5})
            body = {"filter": {"metadata": {key: value}}, "dry_run": True}
            (found,) = assert_sound(api.send(CANCELLATIONS, body), 200)["sample"]
            assert found["run_id"] == run.run_id
            body = {"filter": {"metadata": {key: "other"}}, "dry_run": True}
            assert assert_sound(api.send(CANCELLATIONS, body), 200)["count"] == 0

    def test_selection_is_recorded_in_one_form(self, api: ApiClient) -> None:
        sent = {
            "metadata": {"b": 1, "a": "x"},
            "created_before": "2026-01-01T01:00:00+01:00",
            "status": ["running", "queued", "running"],
        }
        record = start_bulk(api, {"filter": sent})
        assert record["selection"] == {
            "filter": {
                "status": ["queued", "running"],
                "created_before": "2026-01-01T00:00:00Z",
                "metadata": {"a": "x", "b": 1},
            }
        }

    @pytest.mark.parametrize(
        ("path", "location"),
        [
            ("/orgs/acme/v1/cancellations", "/orgs/acme/v1/cancellations"),
            ("/by/xml/1/tsk_1/can_1/v1/cancellations/", "/by/xml/1/tsk_1/can_1/v1/cancellations"),
            ("/é/cancellations", "/%C3%A9/cancellations"),
        ],
    )
    @pytest.mark.urls("tests.api.prefix_urls")
    def test_location_is_below_the_prefix(self, path: str, location: str, api: ApiClient) -> None:
        response = api.send(path, QUEUED)
        record = assert_sound(response, 202)
        assert response["Location"] == f"{location}/{record['cancellation_id']}"
        assert assert_sound(api.get(response["Location"]), 200) == record

    def test_location_below_a_script_name(self, api: ApiClient) -> None:
        api.defaults["SCRIPT_NAME"] = "/app"
        response = api.send(CANCELLATIONS, QUEUED)
        assert response["Location"].startswith("/app/v1/cancellations/can_")


class TestPreview:
    def test_of_a_filter(self, api: ApiClient) -> None:
        runs = sorted(make_runs(25), key=lambda run: run.pk)
        child = runs[0].create_child(status="running")
        answer = assert_sound(api.send(CANCELLATIONS, {**QUEUED, "dry_run": True}), 200)
        assert (answer["count"], answer["is_capped"]) == (25, False)
        assert answer["sample"][:20] == [
            {
                "run_id": run.run_id,
                "outcome": "cancelled",
                "via": "requested",
                "previous_status": "queued",
            }
            for run in runs[:20]
        ]
        assert answer["sample"][20:] == [
            {
                "run_id": child.run_id,
                "outcome": "cancelled",
                "via": "cascade",
                "previous_status": "running",
            }
        ]
        assert set(statuses(*runs)) == {"queued"}
        assert not Cancellation.objects.exists()

    def test_of_ids(self, api: ApiClient) -> None:
        run, foreign = make_run("completed"), make_run(tenant="rival")
        asked = [run.run_id, foreign.run_id, UNKNOWN, "a\0"]
        answer = assert_sound(api.send(CANCELLATIONS, {"run_ids": asked, "dry_run": True}), 200)
        assert (answer["count"], answer["is_capped"]) == (4, False)
        told = [(item["run_id"], item["outcome"]) for item in answer["sample"]]
        rest = [(run_id, "not_found") for run_id in (foreign.run_id, UNKNOWN, "a\\x00…")]
        assert told == [(run.run_id, "already_finished"), *rest]

    def test_is_capped(self, api: ApiClient) -> None:
        body = {"run_ids": [str(n) for n in range(10_001)], "dry_run": True}
        answer = assert_sound(api.send(CANCELLATIONS, body), 200)
        assert (answer["count"], answer["is_capped"], len(answer["sample"])) == (10_000, True, 20)

    def test_descendants_are_not_all_shown(self, api: ApiClient) -> None:
        parent = make_run("running")
        make_runs(200, parent=parent)
        body = {"run_ids": [parent.run_id], "dry_run": True}
        sample = assert_sound(api.send(CANCELLATIONS, body), 200)["sample"]
        assert [item["via"] for item in sample] == ["requested"] + ["cascade"] * 99


class TestIdempotency:
    def test_same_record(self, api: ApiClient) -> None:
        make_runs(2)
        first = start_bulk(api, QUEUED, idempotency_key="one")
        make_run()
        finish_bulk()
        again = start_bulk(api, {"filter": {"status": ["queued"]}}, idempotency_key="one")
        assert again == read_cancellation(api, first)
        assert (again["state"], again["total_count"]) == ("completed", 2)

    def test_another_request(self, api: ApiClient) -> None:
        start_bulk(api, QUEUED, idempotency_key="one")
        for body in (
            {"filter": {"status": "running"}},
            {**QUEUED, "reason": "x"},
            {"run_ids": ["x"]},
        ):
            answer = assert_sound(api.send(CANCELLATIONS, body, idempotency_key="one"), 422)
            assert answer["detail"][0]["type"] == "idempotency_key_reused"
        assert_sound(api.cancel(["x"], idempotency_key="one"), 422)

    @pytest.mark.parametrize("body", [QUEUED, {**QUEUED, "dry_run": True}])
    @pytest.mark.parametrize("key", ["", " ", "x" * 256])
    def test_no_key(self, key: str, body: Any, api: ApiClient) -> None:
        (error,) = assert_sound(api.send(CANCELLATIONS, body, idempotency_key=key), 422)["detail"]
        assert error["loc"] == ["header", "idempotency-key"]

    @pytest.mark.parametrize("body", [QUEUED, {"run_ids": ["tsk_1"]}])
    def test_of_another_caller(self, body: Any) -> None:
        """Nobody learns of a key that somebody else has used, nor of what for."""
        clients = [key_client("rival"), key_client("acme"), key_client("acme"), key_client()]
        clients.append(logged_in(make_user("cancel_run")))
        records = [start_bulk(client, body, idempotency_key="one") for client in clients]
        assert len({record["cancellation_id"] for record in records}) == len(clients)
