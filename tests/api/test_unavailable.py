"""The database is away, or somebody else holds the lock: 503, on every endpoint."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

from django_run_cancel.models import ApiKey, Cancellation
from tests.api.helpers import (
    BULK,
    assert_sound,
    database_away,
    impatient,
    logged_in,
    make_user,
    stored_runs,
)
from tests.helpers import ApiClient, locked_elsewhere, make_run

pytestmark = pytest.mark.django_db(transaction=True)

REQUESTS = [
    ("POST", BULK),
    ("POST", "/v1/runs/tsk_1/cancel"),
    ("POST", "/v1/cancellations"),
    ("POST", "/v1/cancellations/can_1/retry"),
    ("POST", "/v1/cancellations/can_1/abort"),
    ("GET", "/v1/runs"),
    ("GET", "/v1/runs/tsk_1"),
    ("GET", "/v1/cancellations"),
    ("GET", "/v1/cancellations/can_1"),
    ("GET", "/v1/cancellations/can_1/items"),
]


def assert_busy(response: Any) -> None:
    assert response.status_code == 503
    assert response["Content-Type"] == "application/json"
    assert response["Retry-After"] == "1"
    detail = "The database is busy or unreachable; please try again"
    assert response.json() == {"detail": detail}


@pytest.fixture(params=[False, True], ids=["", "ATOMIC_REQUESTS"])
def atomic_requests(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", request.param)


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("who", ["key", "session"])
def test_away__every_endpoint(who: str, secret: str) -> None:
    client = ApiClient(secret) if who == "key" else logged_in(make_user("cancel_run"))
    with database_away():
        for method, path in REQUESTS:
            body = b'{"run_ids": ["tsk_1"]}'
            assert_busy(client.generic(method, path, body, "application/json"))


def test_away__document() -> None:
    """Needs no database."""
    with database_away():
        assert ApiClient().get("/v1/openapi.json").status_code == 200


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("path", [BULK, "/v1/runs/{run_id}/cancel"])
def test_locked__cancel(path: str, api: ApiClient) -> None:
    run = make_run()
    api.get("/v1/runs")  # the key has been used, and need not be noted again
    before = stored_runs()
    with impatient():
        with locked_elsewhere(run):
            body = {"run_ids": [run.run_id]}
            assert_busy(api.send(path.format(run_id=run.run_id), body))
            assert stored_runs() == before
            assert not Cancellation.objects.exists()
        assert_sound(api.cancel([run.run_id]), 200)


def test_locked__reading_goes_on(api: ApiClient) -> None:
    run = make_run()
    api.get("/v1/runs")
    with locked_elsewhere(run):
        assert assert_sound(api.get(f"/v1/runs/{run.run_id}"), 200)["status"] == "queued"


def test_error_of_ours__is_not_hidden(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the handler knows is answered by it: a bug stays a bug, and is seen."""

    def broken(key: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ApiKey, "authenticate", broken)
    with pytest.raises(ZeroDivisionError):
        api.get("/v1/runs")
