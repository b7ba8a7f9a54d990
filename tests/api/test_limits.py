"""Limits of what requests may hold: the last value that is accepted, and the first that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rest_framework.throttling import BaseThrottle

from tests.api.helpers import BULK, CANCELLATIONS, assert_sound, cursor
from tests.helpers import ApiClient, make_run

pytestmark = pytest.mark.django_db


def preview(client: ApiClient, filters: Any) -> Any:
    return client.send(CANCELLATIONS, {"filter": filters, "dry_run": True})


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        *((name, 64) for name in ("type", "tenant", "parent", "ancestor", "backend")),
        ("title", 255),
    ],
)
def test_filter__length(name: str, longest: int, settings: Any, api: ApiClient) -> None:
    settings.RUN_CANCEL_SCOPE = "django_run_cancel.api.permissions.default_scope"
    assert_sound(preview(api, {name: "x" * longest}), 200)
    assert_sound(preview(api, {name: "x" * (longest + 1)}), 422)


@pytest.mark.parametrize("name", ["type", "parent"])
def test_list__length(name: str, api: ApiClient) -> None:
    assert_sound(api.get("/v1/runs", {name: "x" * 64}), 200)
    assert_sound(api.get("/v1/runs", {name: "x" * 65}), 422)


@pytest.mark.parametrize(
    ("last", "first_refused"),
    [
        ({f"k{n}": n for n in range(20)}, {f"k{n}": n for n in range(21)}),
        ({"k" * 255: 1}, {"k" * 256: 1}),
        ({"a": "x" * 255}, {"a": "x" * 256}),
        ({"a": 2**63 - 1}, {"a": 2**63}),
    ],
)
def test_filter__metadata(last: Any, first_refused: Any, api: ApiClient) -> None:
    assert_sound(preview(api, {"metadata": last}), 200)
    assert_sound(preview(api, {"metadata": first_refused}), 422)


def test_filter__length_of_a_moment(api: ApiClient) -> None:
    moment = "2026-01-01T00:00:00."
    assert_sound(preview(api, {"created_after": moment.ljust(64, "0")}), 200)
    assert_sound(preview(api, {"created_after": moment.ljust(65, "0")}), 422)


def test_reason__length(api: ApiClient) -> None:
    path = f"/v1/runs/{make_run().run_id}/cancel"
    assert_sound(api.send(path, {"reason": "x" * 2_001}), 422)
    assert_sound(api.send(path, {"reason": "x" * 2_000}), 200)


def test_idempotency_key__length(api: ApiClient) -> None:
    assert_sound(api.cancel([], idempotency_key="x" * 255), 200)
    assert_sound(api.cancel([], idempotency_key="x" * 256), 422)


def test_id__length(api: ApiClient) -> None:
    run = make_run(run_id="x" * 64)
    assert_sound(api.get(f"/v1/runs/{run.run_id}"), 200)


def test_page_size(api: ApiClient) -> None:
    for size, status in ((0, 422), (1, 200), (100, 200), (101, 422)):
        assert_sound(api.get("/v1/runs", {"page_size": size}), status)


def test_cursor__offset(api: ApiClient) -> None:
    assert_sound(api.get("/v1/runs", {"cursor": cursor(o="100000")}), 200)
    assert_sound(api.get("/v1/runs", {"cursor": cursor(o="100001")}), 422)


@pytest.mark.parametrize(
    "body",
    [
        {"run_ids": [5] * 150},
        {f"field{n}": 1 for n in range(150)},
        {"filter": {f"field{n}": 1 for n in range(150)}},
    ],
)
def test_errors__number(body: Any, api: ApiClient) -> None:
    """The first hundred are told, of items of a list as of unknown names."""
    assert len(assert_sound(api.send(CANCELLATIONS, body), 422)["detail"]) == 100


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (json.dumps(2**64 - 1), 2**64 - 1),
        (json.dumps(2**64), str(2**64)),
        ("7" * 4_001, "inf"),
        (json.dumps(["x" * 100]), ["x" * 100]),
        (json.dumps(["x" * 101]), ["x" * 100 + "…"]),
        ("[1, 2, 3]", [1, 2, 3]),
        ("[[[1]]]", [["…"]]),
    ],
)
def test_echo(sent: str, shown: Any, api: ApiClient) -> None:
    (error,) = assert_sound(api.send(BULK, f'{{"run_ids": [{sent}]}}'.encode()), 422)["detail"]
    assert error["input"] == shown


class WaitOfAFraction(BaseThrottle):
    def allow_request(self, request: Any, view: Any) -> bool:
        return False

    def wait(self) -> float:
        return 1.2


def test_throttle__wait_is_rounded_up(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that came back after the seconds rounded down would be refused again."""
    view = "django_run_cancel.api.run_views.RunListView"
    monkeypatch.setattr(f"{view}.throttle_classes", (WaitOfAFraction,))
    assert api.get("/v1/runs")["Retry-After"] == "2"
