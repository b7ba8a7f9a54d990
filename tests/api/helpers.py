"""What the tests of the HTTP API share."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_run_cancel.cancellation import advance_bulk_cancellations
from django_run_cancel.models import ApiKey, get_run_model
from tests.helpers import IS_MYSQL, IS_POSTGRESQL, IS_SQLITE, ApiClient

BULK = "/v1/runs/cancel"
CANCELLATIONS = "/v1/cancellations"
UNKNOWN = "tsk_" + "0" * 32
CONTRACT = Path(__file__).parent.parent / "contract"

MAX_ANSWER_BYTES = 64 * 1024
MAX_SECONDS = 1.0

# All of them take a GET, but for the first four.
ENDPOINTS = [
    BULK,
    f"/v1/runs/{UNKNOWN}/cancel",
    "/v1/cancellations/can_1/retry",
    "/v1/cancellations/can_1/abort",
    "/v1/runs",
    f"/v1/runs/{UNKNOWN}",
    "/v1/cancellations",
    "/v1/cancellations/can_1",
    "/v1/cancellations/can_1/items",
    "/v1/openapi.json",
]
POSTS, GETS = ENDPOINTS[:4], ENDPOINTS[4:]

QUEUED = {"filter": {"status": "queued"}}

RUN_FIELDS = {
    "run_id",
    "run_type",
    "status",
    "state",
    "parent_run_id",
    "title",
    "metadata",
    "created_at",
    "queued_at",
    "started_at",
    "finished_at",
    "failure_reason",
    "cancellation_id",
    "stop_state",
    "stopped_at",
}


def assert_sound(response: HttpResponse, *statuses: int) -> Any:
    """Check that an answer is JSON, small and no fault of the server's; return what it says."""
    assert response.status_code < 500, response.content[:500]
    assert not statuses or response.status_code in statuses, (
        response.status_code,
        response.content[:500],
    )
    assert len(response.content) < MAX_ANSWER_BYTES
    assert response["Content-Type"] == "application/json"
    return json.loads(response.content) if response.content else None


@contextlib.contextmanager
def in_time(limit: float = MAX_SECONDS) -> Iterator[None]:
    """Check that a block is quick; by processor time, which other processes do not prolong."""
    begin = time.process_time()
    yield
    assert time.process_time() - begin < limit


@contextlib.contextmanager
def nothing_changes() -> Iterator[None]:
    """Check that a block leaves the runs as they were."""
    before = stored_runs()
    yield
    assert stored_runs() == before


def stored_runs() -> dict[str, Any]:
    rows = get_run_model()._default_manager.values_list("run_id", "status", "cancellation")
    return {run_id: rest for run_id, *rest in rows}


@contextlib.contextmanager
def statements() -> Iterator[list[str]]:
    """Collect the SQL of a block, savepoints and the like left out."""
    seen: list[str] = []
    with CaptureQueriesContext(connection) as captured:
        yield seen
    noise = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "ROLLBACK", "SET ")
    seen += [query["sql"] for query in captured if not query["sql"].startswith(noise)]


def raw_request(client: Client, **environ: Any) -> HttpResponse:
    """Post with a WSGI environment that the test client would not build."""
    return client.request(
        **{
            "REQUEST_METHOD": "POST",
            "PATH_INFO": BULK,
            "CONTENT_TYPE": "application/json",
            **client.defaults,
            **environ,
        }
    )


def make_user(*permissions: str, name: str = "ann", **fields: Any) -> User:
    """Create a user with permissions on the run model: ``cancel_run``, ``view``."""
    meta = get_run_model()._meta
    codenames = [f"view_{meta.model_name}" if name == "view" else name for name in permissions]
    user = User.objects.create_user(name, password="secret", **fields)
    found = Permission.objects.filter(
        content_type__app_label=meta.app_label, codename__in=codenames
    )
    assert len(found) == len(codenames)
    user.user_permissions.set(found)
    return user


def logged_in(user: User, **kwargs: Any) -> ApiClient:
    client = ApiClient(**kwargs)
    client.force_login(user)
    return client


def key_client(tenant: str = "", name: str = "tests", **fields: Any) -> ApiClient:
    return ApiClient(ApiKey.issue(name, tenant=tenant, **fields)[1])


def start_bulk(client: ApiClient, body: Any, **headers: str) -> Any:
    """Start a bulk cancellation, and return the record in the answer."""
    return assert_sound(client.send(CANCELLATIONS, body, **headers), 202)


def read_cancellation(client: ApiClient, record: Any) -> Any:
    return assert_sound(client.get(f"{CANCELLATIONS}/{record['cancellation_id']}"), 200)


def finish_bulk() -> None:
    """Advance all bulk cancellations to their end."""
    while advance_bulk_cancellations(10):
        pass


def cursor(**tokens: str) -> str:
    """Return a cursor as the pagination encodes it: ``p``osition, ``o``ffset, ``r``everse."""
    return base64.b64encode(urlencode(tokens, errors="surrogatepass").encode()).decode()


def walk(client: ApiClient, path: str, link: str = "next") -> list[list[dict[str, Any]]]:
    """Return the pages from here on."""
    pages = []
    url: str | None = path
    while url:
        answer = client.get(url).json()
        pages.append(answer["results"])
        url = answer[link]
        assert len(pages) < 100, "the pages never end"
    return pages


@contextlib.contextmanager
def database_away() -> Iterator[None]:
    """Point the connection at where no database is."""
    key, value = ("NAME", "/nowhere/at/all") if IS_SQLITE else ("PORT", 1)
    settings = connection.settings_dict
    connection.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings, key, value)
        yield
        connection.close()


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Let this connection wait for locks only briefly."""
    short, normal = {
        IS_SQLITE: ("PRAGMA busy_timeout = 50", "PRAGMA busy_timeout = 20000"),
        IS_POSTGRESQL: ("SET lock_timeout = '50ms'", "SET lock_timeout = 0"),
        IS_MYSQL: ("SET innodb_lock_wait_timeout = 1", "SET innodb_lock_wait_timeout = 50"),
    }[True]
    with connection.cursor() as db:
        db.execute(short)
    yield
    with connection.cursor() as db:
        db.execute(normal)


def ids_of(run: Any) -> bytes:
    return json.dumps({"run_ids": [run.run_id]}).encode()


def cancel_one(client: ApiClient, run_id: str, **body: Any) -> Any:
    return client.send(f"/v1/runs/{run_id}/cancel", body)
