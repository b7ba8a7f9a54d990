"""Rates by the scopes run_cancel, run_cancel_bulk and run_read."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework.throttling import BaseThrottle

from django_run_cancel.models import Cancellation
from tests.api.helpers import BULK, assert_sound, key_client, logged_in, make_user
from tests.helpers import ApiClient, make_run, statuses

pytestmark = pytest.mark.django_db


def set_rates(settings: Any, **rates: str | None) -> None:
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": rates}


def test_throttle__none_by_default(api: ApiClient) -> None:
    assert {api.cancel([]).status_code for _ in range(30)} == {200}


def test_throttle__cancel(settings: Any) -> None:
    set_rates(settings, run_cancel="2/min")
    first, second = key_client(), key_client()
    run = make_run()
    assert_sound(first.cancel(["tsk_1"]), 200)
    assert_sound(first.send("/v1/runs/tsk_1/cancel", b""), 404)  # counts as well
    for path in (BULK, f"/v1/runs/{run.run_id}/cancel"):
        response = first.send(path, {"run_ids": [run.run_id]})
        assert assert_sound(response, 429) == {"detail": "Too Many Requests"}
        assert 1 <= int(response["Retry-After"]) <= 60
    assert statuses(run) == ["queued"]
    assert_sound(first.get("/v1/runs"), 200)  # another scope
    assert_sound(second.cancel([run.run_id]), 200)  # another key


def test_throttle__read(settings: Any) -> None:
    set_rates(settings, run_read="3/min")
    client = key_client()
    assert_sound(client.get("/v1/runs"), 200)
    assert_sound(client.head("/v1/cancellations"), 200)
    assert_sound(client.get("/v1/runs/tsk_1"), 404)
    assert_sound(client.get("/v1/runs/tsk_1"), 429)
    assert_sound(client.cancel([]), 200)
    assert_sound(client.get("/v1/openapi.json"), 200)  # is never limited


def test_throttle__bulk_cancellations(settings: Any) -> None:
    set_rates(settings, run_cancel_bulk="2/hour", run_cancel="1/hour")
    client = key_client()
    for more, status in (({"dry_run": True}, 200), ({}, 202), ({"dry_run": True}, 429), ({}, 429)):
        response = client.send("/v1/cancellations", {"run_ids": ["tsk_1"], **more})
        assert_sound(response, status)
    assert_sound(client.get("/v1/cancellations"), 200)
    # Ending one is not counted with starting one.
    path = f"/v1/cancellations/{Cancellation.objects.get().cancellation_id}/abort"
    assert [client.send(path, "").status_code for _ in range(2)] == [200, 429]


def test_throttle__users_are_counted_one_by_one(settings: Any) -> None:
    set_rates(settings, run_cancel="1/hour")
    ann, bob = (logged_in(make_user("cancel_run", name=name)) for name in ("ann", "bob"))
    assert [ann.cancel([]).status_code for _ in range(2)] == [200, 429]
    assert bob.cancel([]).status_code == 200


def test_throttle__rates_are_read_late(settings: Any, api: ApiClient) -> None:
    for rate, expected in [("1/min", [200, 429]), (None, [200, 200]), ("1/min", [429, 429])]:
        set_rates(settings, run_cancel=rate)
        assert [api.cancel([]).status_code for _ in range(2)] == expected


def test_throttle__wrong_key_is_not_counted(settings: Any, secret: str) -> None:
    """Or anybody could use up somebody else's rate."""
    set_rates(settings, run_cancel="1/min")
    for _ in range(3):
        assert_sound(ApiClient("rc_wrong").cancel([]), 403)
    assert_sound(ApiClient(secret).cancel([]), 200)


class NoWait(BaseThrottle):
    """A throttle that cannot tell when to come back."""

    def allow_request(self, request: Any, view: Any) -> bool:
        return False


def test_throttle__unknown_wait(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_run_cancel.api.run_views.RunListView.throttle_classes", (NoWait,))
    response = api.get("/v1/runs")
    assert_sound(response, 429)
    assert response["Retry-After"] == "1"
