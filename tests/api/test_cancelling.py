"""Cancelling one run, or up to a hundred, with one request."""

from __future__ import annotations

from typing import Any

import pytest

from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from tests.api.helpers import BULK, RUN_FIELDS, UNKNOWN, assert_sound, cancel_one
from tests.helpers import ApiClient, ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


def test_bulk__mixed_outcomes(api: ApiClient) -> None:
    queued, running = make_run(), make_run("running")
    done, cancelled = make_run("completed"), make_run("cancelled")
    asked = [done.run_id, queued.run_id, UNKNOWN, cancelled.run_id, running.run_id, queued.run_id]
    response = api.cancel(asked)
    assert assert_sound(response, 200) == {
        "cancelled": [queued.run_id, cancelled.run_id, running.run_id],
        "failed": [done.run_id, UNKNOWN],
    }
    record = Cancellation.objects.get(cancellation_id=response["Cancellation-Id"])
    assert (record.total_count, record.cancelled_count, record.failed_count) == (5, 3, 2)
    assert (record.source, record.reason, record.force) == ("api", "", False)
    again = api.cancel(asked)
    assert again.json() == response.json()
    assert again["Cancellation-Id"] != response["Cancellation-Id"]


def test_bulk__nothing_asked(api: ApiClient) -> None:
    response = api.cancel([])
    assert assert_sound(response, 200) == {"cancelled": [], "failed": []}
    assert "Cancellation-Id" not in response
    assert not Cancellation.objects.exists()


@pytest.mark.parametrize("count", [100, 101])
def test_bulk__at_most_100(count: int, api: ApiClient) -> None:
    runs = make_runs(count)
    response = api.cancel(ids(runs))
    if count == 100:
        assert assert_sound(response, 200) == {"cancelled": ids(runs), "failed": []}
        return
    (error,) = assert_sound(response, 422)["detail"]
    assert error["ctx"] == {"field_type": "List", "max_length": 100, "actual_length": 101}
    assert error["input"] == [*ids(runs)[:3], "…"]
    assert set(statuses(*runs)) == {"queued"}


def test_bulk__checks_come_in_order(api: ApiClient) -> None:
    """It is a list, it is not too long, it holds strings."""
    kinds = [
        [error["type"] for error in assert_sound(api.cancel(run_ids), 422)["detail"]]
        for run_ids in ("x" * 101, [5] * 101, [5] * 100, {"a": 1})
    ]
    assert kinds == [["list_type"], ["too_long"], ["string_type"] * 100, ["list_type"]]


@pytest.mark.parametrize("status", ["created", "queued", "running", "paused"])
def test_single__active(status: str, api: ApiClient) -> None:
    run = make_run(status, title="crawl", metadata={"n": 1})
    child = run.create_child(status="running")
    response = cancel_one(api, run.run_id, reason="too slow")
    answer = assert_sound(response, 200)
    assert set(answer) == RUN_FIELDS
    assert (answer["run_id"], answer["status"]) == (run.run_id, "cancelled")
    waiting = status in ("created", "queued")
    assert answer["stop_state"] == ("never_started" if waiting else "stopping")
    words = "cancelled, never started" if waiting else "cancelled, stopping"
    assert answer["state"] == words
    assert (answer["stopped_at"] is not None) is waiting
    assert (answer["title"], answer["metadata"]) == ("crawl", {"n": 1})
    assert answer["cancellation_id"] == response["Cancellation-Id"]
    record = Cancellation.objects.get(cancellation_id=response["Cancellation-Id"])
    assert (record.reason, record.cascaded_count) == ("too slow", 1)
    assert statuses(child) == ["cancelled"]


def test_single__repeated(api: ApiClient) -> None:
    run = make_run()
    first, second = cancel_one(api, run.run_id), cancel_one(api, run.run_id)
    assert assert_sound(second, 200) == first.json()
    assert second["Cancellation-Id"] != first["Cancellation-Id"]
    (item,) = Cancellation.objects.get(cancellation_id=second["Cancellation-Id"]).items.all()
    assert item.outcome == "already_cancelled"


@pytest.mark.parametrize("status", ["completed", "failed", "terminated", "timed_out"])
def test_single__finished(status: str, api: ApiClient) -> None:
    run = make_run(status)
    response = cancel_one(api, run.run_id)
    detail = f"The run is {status} and can no longer be cancelled"
    assert assert_sound(response, 409) == {"detail": detail}
    (item,) = Cancellation.objects.get(cancellation_id=response["Cancellation-Id"]).items.all()
    assert (item.outcome, item.previous_status) == ("already_finished", status)
    assert statuses(run) == [status]


def test_single__unknown(api: ApiClient) -> None:
    response = cancel_one(api, UNKNOWN)
    assert assert_sound(response, 404) == {"detail": "Not Found"}
    assert Cancellation.objects.get().cancellation_id == response["Cancellation-Id"]


def test_single__gone_meanwhile(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    finish = Cancellation.__init__

    def delete(self: Any, *args: Any, **kwargs: Any) -> None:
        finish(self, *args, **kwargs)
        get_run_model()._default_manager.filter(pk=run.pk).delete()

    monkeypatch.setattr(Cancellation, "__init__", delete)
    assert_sound(cancel_one(api, run.run_id), 404)


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"reason": ""}', b'{"other": 1}'])
def test_single__needs_no_body(body: bytes, api: ApiClient) -> None:
    run = make_run()
    assert_sound(api.send(f"/v1/runs/{run.run_id}/cancel", body), 200)
    assert Cancellation.objects.get().reason == ""


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (None, "string_type"),
        (5, "string_type"),
        (["a"], "string_type"),
        ("a" * 2_001, "string_invalid"),
        ("a\0", "string_invalid"),
        ("\ud800", "string_invalid"),
    ],
)
def test_single__wrong_reason(reason: Any, kind: str, api: ApiClient) -> None:
    run = make_run()
    (error,) = assert_sound(cancel_one(api, run.run_id, reason=reason), 422)["detail"]
    assert (error["type"], error["loc"]) == (kind, ["body", "reason"])
    assert statuses(run) == ["queued"]


@pytest.mark.parametrize("reason", ["a" * 2_000, "🦀\n\u202e", " "])
def test_single__strange_reason(reason: str, api: ApiClient) -> None:
    run = make_run()
    response = cancel_one(api, run.run_id, reason=reason)
    assert_sound(response, 200)
    path = f"/v1/cancellations/{response['Cancellation-Id']}"
    assert api.get(path).json()["reason"] == reason


@pytest.mark.parametrize("body", [b"[]", b'"why"', b"5"])
def test_single__body_is_no_object(body: bytes, api: ApiClient) -> None:
    (error,) = assert_sound(api.send(f"/v1/runs/{UNKNOWN}/cancel", body), 422)["detail"]
    assert (error["type"], error["loc"]) == ("model_attributes_type", ["body"])


@pytest.mark.parametrize("path", ["/v1/runs/{run_id}/cancel", BULK])
class TestForce:
    def send(self, api: ApiClient, path: str, run: Any, **body: Any) -> Any:
        return api.send(path.format(run_id=run.run_id), {"run_ids": [run.run_id], **body})

    def test_after_a_polite_cancellation(self, api: ApiClient, path: str) -> None:
        run = make_run("running")
        polite = self.send(api, path, run).json()
        item = CancellationItem.objects.get()
        CancellationItem.objects.update(delivery="delivered", next_attempt_at=None)
        again = self.send(api, path, run, force=False)
        assert CancellationItem.objects.filter(pk=item.pk, delivery="delivered", force=False)
        forced = self.send(api, path, run, force=True)
        assert assert_sound(forced, 200) == again.json() == polite
        assert CancellationItem.objects.filter(pk=item.pk, delivery="pending", force=True)
        record = Cancellation.objects.get(cancellation_id=forced["Cancellation-Id"])
        assert (record.force, record.items.get().outcome) == (True, "already_cancelled")

    def test_of_another_tenant(self, api: ApiClient, path: str) -> None:
        run = make_run("running", tenant="theirs")
        run.cancel(requested_by="them")
        self.send(api, path, run, force=True)
        assert not CancellationItem.objects.filter(run_id=run.run_id, outcome="cancelled", force=1)

    @pytest.mark.parametrize("sent", ["true", 1, 0, None, [], {}])
    def test_no_boolean(self, api: ApiClient, path: str, sent: Any) -> None:
        run = make_run("running")
        answer = assert_sound(self.send(api, path, run, force=sent), 422)
        (entry,) = answer["detail"]
        assert entry == {
            "type": "bool_type",
            "loc": ["body", "force"],
            "msg": "Input should be a valid boolean",
            "input": sent,
        }
        assert statuses(run) == ["running"]
