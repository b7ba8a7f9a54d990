"""Who is asking: keys and sessions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_run_cancel.models import ApiKey, Cancellation
from django_run_cancel.models.api_keys import digest
from tests.api.helpers import (
    BULK,
    assert_sound,
    key_client,
    logged_in,
    make_user,
    statements,
)
from tests.helpers import IS_POSTGRESQL, IS_SQLITE, ApiClient, make_run, statuses

pytestmark = pytest.mark.django_db

NOW = timezone.now()
UNUSABLE: dict[str, dict[str, Any]] = {
    "expired": {"expires_at": NOW - timedelta(seconds=1)},
    "expired at this moment": {"expires_at": NOW},
    "revoked": {"revoked_at": NOW},
    "revoked in the future": {"revoked_at": NOW + timedelta(days=1)},
    "deleted": {},
}


def test_key__good() -> None:
    run = make_run()
    answer = assert_sound(key_client().cancel([run.run_id]), 200)
    assert answer == {"cancelled": [run.run_id], "failed": []}
    record = Cancellation.objects.get()
    assert record.requested_by == ApiKey.objects.get().label
    assert record.user_id == ""


@pytest.mark.parametrize("name", UNUSABLE)
def test_key__unusable(name: str) -> None:
    run = make_run()
    client = key_client()
    if name == "deleted":
        ApiKey.objects.all().delete()
    ApiKey.objects.update(**UNUSABLE[name])
    response = client.cancel([run.run_id])
    assert assert_sound(response, 403) == {"detail": "Invalid credentials"}
    assert "WWW-Authenticate" not in response
    assert statuses(run) == ["queued"]
    assert not ApiKey.objects.exclude(last_used_at=None).exists()


@pytest.mark.parametrize(
    "change",
    [str.lower, str.upper, " {}".format, "{} ".format, '"{}"'.format, "{}\0".format, "{}é".format],
)
def test_key__almost_right(change: Any, secret: str) -> None:
    run = make_run()
    assert_sound(ApiClient(change(secret)).cancel([run.run_id]), 403)
    assert statuses(run) == ["queued"]


@pytest.mark.parametrize("key", [None, "", "rc_", "rc_wrong", "é" * 9_000])
def test_key__missing_or_wrong(key: str | None) -> None:
    """Before the method, the body and its media type are looked at."""
    client = ApiClient(key)
    for path in (BULK, "/v1/runs/tsk_1/cancel", "/v1/runs", "/v1/cancellations/x"):
        for method, content_type in (("GET", ""), ("POST", "text/plain"), ("DELETE", "a/json")):
            response = client.generic(method, path, b"{", content_type)
            answer = assert_sound(response, 403)
            assert answer["detail"] == "Invalid credentials"
            assert ("x-api-key is missing" in str(answer)) == (key is None)


def test_key__digest_is_no_key(secret: str) -> None:
    """Whoever has read the table has no key."""
    row = ApiKey.objects.get()
    for text in (row.digest, row.prefix):
        assert_sound(ApiClient(text).get("/v1/runs"), 403)


def test_key__one_indexed_query(secret: str) -> None:
    client = ApiClient(secret)
    client.get("/v1/runs/x%00")
    with statements() as seen:
        client.get("/v1/runs/x%00")  # an id that is not looked for: what is left is the key
    (query,) = seen
    assert digest(secret) in query
    # Among few rows every index costs the same.
    ApiKey.objects.bulk_create(ApiKey(name=f"key {n}", digest=digest(str(n))) for n in range(1_000))
    rows = explain(query)
    assert "run_cancel_key_digest_unique" in rows or "sqlite_autoindex" in rows, rows


def test_key__one_query_when_wrong() -> None:
    with statements() as seen:
        ApiClient("rc_wrong").get("/v1/runs")
    assert len(seen) == 1


def explain(query: str) -> str:
    """Return the plan; without sequential scans, which are quicker on a table of one row."""
    with connection.cursor() as db:
        if IS_POSTGRESQL:
            db.execute("ANALYZE django_run_cancel_apikey")
            db.execute("SET LOCAL enable_seqscan = off")
        db.execute(f"EXPLAIN {'QUERY PLAN' if IS_SQLITE else ''} {query}")
        return str(db.fetchall())


def test_key__last_used_at_is_written_once_a_minute(secret: str) -> None:
    client = ApiClient(secret)

    def writes() -> int:
        with statements() as seen:
            client.get("/v1/runs")
        return sum(query.startswith("UPDATE") for query in seen)

    assert [writes() for _ in range(3)] == [1, 0, 0]
    noted = ApiKey.objects.get().last_used_at
    assert noted is not None
    assert timezone.now() - noted < timedelta(seconds=30)
    ApiKey.objects.update(last_used_at=noted - timedelta(seconds=61))
    assert [writes() for _ in range(2)] == [1, 0]


def test_session__good() -> None:
    user = make_user("cancel_run")
    run = make_run(tenant="acme")
    answer = assert_sound(logged_in(user).cancel([run.run_id]), 200)
    assert answer == {"cancelled": [run.run_id], "failed": []}
    record = Cancellation.objects.get()
    assert (record.user_id, record.requested_by) == (str(user.pk), "ann")


def test_session__wrong_key_never_falls_back() -> None:
    run = make_run()
    client = logged_in(make_user("cancel_run", is_superuser=True))
    for key in ("", "rc_wrong"):
        assert_sound(client.cancel([run.run_id], x_api_key=key), 403)
        assert_sound(client.get("/v1/runs", headers={"x-api-key": key}), 403)
    assert statuses(run) == ["queued"]


def test_session__right_key_goes_first(secret: str) -> None:
    run = make_run(tenant="acme")
    client = logged_in(make_user("cancel_run", is_superuser=True))
    answer = assert_sound(client.cancel([run.run_id], x_api_key=secret), 200)
    assert answer == {"cancelled": [], "failed": [run.run_id]}


def test_session__inactive_or_logged_out() -> None:
    user = make_user("cancel_run")
    client = logged_in(user)
    user.is_active = False
    user.save()
    assert assert_sound(client.get("/v1/runs"), 403)["detail"] == "Invalid credentials"
    client.logout()
    assert_sound(client.get("/v1/runs"), 403)


def test_session__csrf() -> None:
    run = make_run()
    client = logged_in(make_user("cancel_run"), enforce_csrf_checks=True)
    for path in (BULK, f"/v1/runs/{run.run_id}/cancel"):
        answer = assert_sound(client.send(path, {"run_ids": [run.run_id]}), 403)
        assert answer["detail"].startswith("CSRF Failed")
    assert statuses(run) == ["queued"]
    assert_sound(client.get("/v1/runs"), 200)

    token = "a" * 32
    client.cookies["csrftoken"] = token
    assert_sound(client.cancel([run.run_id], X_CSRFToken="b" * 32), 403)
    assert_sound(client.cancel([run.run_id], X_CSRFToken=token), 200)


def test_key__needs_no_csrf_token(secret: str) -> None:
    run = make_run()
    client = ApiClient(secret, enforce_csrf_checks=True)
    assert_sound(client.cancel([run.run_id], Origin="https://elsewhere.example"), 200)
