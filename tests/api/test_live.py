"""Real servers and the real client of the reference: nothing here is simulated."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.api.helpers import BULK, UNKNOWN
from tests.api.servers import SERVERS, Answer, Connection, chunked, json_headers, running, runserver
from tests.helpers import ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db(transaction=True)

LARGE = b"a" * 50_000_000


@pytest.fixture(scope="module", params=SERVERS)
def started(request: Any, django_db_setup: None) -> Iterator[tuple[str, int]]:
    with running(request.param) as port:
        yield request.param, port


@pytest.fixture
def server(started: tuple[str, int], transactional_db: None) -> str:
    return started[0]


@pytest.fixture
def port(started: tuple[str, int], server: str) -> int:
    return started[1]


@pytest.fixture
def local(transactional_db: None) -> Iterator[int]:
    with runserver() as port:
        yield port


def said(answer: Answer, *expected: int) -> Any:
    """Check that an answer has arrived whole, and return what it says."""
    assert answer.status in expected
    assert answer.headers["content-type"] == "application/json"
    assert answer.body is not None
    return json.loads(answer.body)


@contextlib.contextmanager
def reference_client(port: int, key: str) -> Iterator[Any]:
    """Yield the reference's client."""
    with httpx.Client() as http:
        url = f"http://127.0.0.1:{port}"
        yield load_client().Skyvern(base_url=url, api_key=key, httpx_client=http)


def load_client() -> Any:
    """Return its module, without the rest of the package, which needs much more."""
    if "skyvern" in sys.modules:
        return sys.modules["skyvern.client"]
    spec = importlib.util.find_spec("skyvern")
    assert spec is not None
    assert spec.submodule_search_locations
    package = ModuleType("skyvern")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["skyvern"] = package
    return importlib.import_module("skyvern.client")


def refusal(client: Any, run_ids: list[str]) -> Any:
    """Return the error that the client raises."""
    with pytest.raises(importlib.import_module("skyvern.client.core").ApiError) as caught:
        client.bulk_cancel_runs(run_ids=run_ids)
    return caught.value


def test_client__mixed_outcomes(port: int, secret: str) -> None:
    active, busy = make_runs(40), make_runs(20, "running")
    done, cancelled = make_runs(20, "completed"), make_runs(19, "cancelled")
    asked = [*ids(done + active + cancelled + busy), UNKNOWN]
    with reference_client(port, secret) as client:
        for _ in range(2):  # the second time is like the first
            answer = client.bulk_cancel_runs(run_ids=asked)
            assert answer.cancelled == ids(active + cancelled + busy)
            assert answer.failed == [*ids(done), UNKNOWN]
    assert set(statuses(*active, *busy)) == {"cancelled"}
    assert set(statuses(*done)) == {"completed"}


def test_client__too_many(port: int, secret: str) -> None:
    with reference_client(port, secret) as client:
        error = refusal(client, ["tsk_1"] * 101)
    assert isinstance(error, load_client().UnprocessableEntityError)
    (told,) = error.body["detail"]
    assert (told["type"], told["loc"]) == ("too_long", ["body", "run_ids"])


def test_client__wrong_key(port: int) -> None:
    with reference_client(port, "rc_wrong") as client:
        error = refusal(client, ["tsk_1"])
    assert (error.status_code, error.body) == (403, {"detail": "Invalid credentials"})


def test_client__throttled(local: int, secret: str, settings: Any) -> None:
    """A client that is told to try again waits as long as Retry-After says."""
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"run_cancel": "1/s"}}
    with reference_client(local, secret) as client:
        for _ in range(2):
            # It counts from 2.
            answer = client.bulk_cancel_runs(run_ids=["tsk_1"], request_options={"max_retries": 4})
            assert answer.failed == ["tsk_1"]
        settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"run_cancel": "1/day"}}
        error = refusal(client, ["tsk_1"])
    assert error.status_code == 429
    assert int(error.headers["retry-after"]) > 60


@pytest.mark.parametrize("key", ["right", "wrong"])
@pytest.mark.parametrize("form", ["length", "chunked"])
def test_large_body__is_refused(key: str, form: str, port: int, secret: str) -> None:
    """The server may end the connection before it has read all; the answer can be lost then."""
    headers = json_headers(secret if key == "right" else "rc_wrong")
    body = LARGE
    if form == "chunked":
        headers["Transfer_Encoding"] = "chunked"
        body = chunked(*[LARGE[:1_000_000]] * 50)
    with Connection(port) as connection, suppress(ConnectionError):
        detail = "Request body too large" if key == "right" else "Invalid credentials"
        answer = connection.send("POST", BULK, body, **headers)
        assert said(answer, 413, 403) == {"detail": detail}
    with Connection(port) as connection:
        assert connection.send("GET", "/v1/runs", **json_headers(secret)).status == 200


def test_chunked__is_read(port: int, secret: str) -> None:
    run = make_run()
    body = json.dumps({"run_ids": [run.run_id]}).encode()
    with Connection(port) as connection:
        answer = connection.send(
            "POST",
            BULK,
            chunked(body[:5], body[5:]),
            **json_headers(secret, Transfer_Encoding="chunked"),
        )
        assert said(answer, 200) == {"cancelled": [run.run_id], "failed": []}


def test_chunked__wsgiref(local: int, secret: str) -> None:
    """It cannot tell where such a body ends: refused, and not taken to be empty."""
    run = make_run()
    body = chunked(json.dumps({"run_ids": [run.run_id]}).encode())
    headers = json_headers(secret, Transfer_Encoding="chunked")
    with Connection(local) as connection:
        said(connection.send("POST", BULK, body, **headers), 411)
    assert statuses(run) == ["queued"]


@pytest.mark.parametrize("body", [b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}XX0\r\n\r\n", b"-1\r\n\r\n"])
def test_chunked__malformed(body: bytes, port: int, secret: str) -> None:
    headers = json_headers(secret, Transfer_Encoding="chunked")
    with Connection(port) as connection:
        assert connection.send("POST", BULK, body, **headers).status == 400


def test_truncated__body(port: int, secret: str) -> None:
    """Part of a list is not what was asked for, even where it is a whole document."""
    run = make_run()
    body = json.dumps({"run_ids": [run.run_id]}).encode()
    headers = json_headers(secret, Content_Length=str(len(body) + 1))
    with Connection(port) as connection:
        connection.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.send("POST", BULK, body, **headers)
    time.sleep(0.2)
    assert statuses(run) == ["queued"]


def test_keep_alive__many_requests(port: int, secret: str) -> None:
    runs = make_runs(3)
    with Connection(port) as connection:
        for run in runs:
            body = json.dumps({"run_ids": [run.run_id]}).encode()
            answer = connection.send("POST", BULK, body, **json_headers(secret))
            assert said(answer, 200)["cancelled"] == [run.run_id]
            said(connection.send("POST", BULK, b"a" * 5_000, **json_headers("")), 403)


def test_methods(port: int, secret: str) -> None:
    with Connection(port) as connection:
        for method, status in (("OPTIONS", 405), ("PUT", 405), ("TRACE", 405), ("HEAD", 405)):
            answer = connection.send(method, BULK, **json_headers(secret))
            assert (answer.status, answer.headers["allow"]) == (status, "POST")
        answer = connection.send("HEAD", "/v1/runs", **json_headers(secret))
        assert (answer.status, answer.body) == (200, b"")
        said(connection.send("GET", "/v1/runs", **json_headers(secret)), 200)


@pytest.mark.parametrize("path", ["/v1/runs/a%00b", "/v1/runs/%ff", "/v1/runs/%0a", "/v1/runs/%"])
def test_paths(path: str, port: int, secret: str) -> None:
    with Connection(port) as connection:
        said(connection.send("GET", path, **json_headers(secret)), 404)


@pytest.mark.parametrize("value", ["\0", "a\0", "a\x01"])
def test_headers__refused_by_the_server_or_by_us(value: str, port: int, secret: str) -> None:
    run = make_run()
    body = json.dumps({"run_ids": [run.run_id]}).encode()
    with Connection(port) as connection:
        answer = connection.send("POST", BULK, body, **json_headers(value))
        assert answer.status in (400, 403)
    assert statuses(run) == ["queued"]


def test_headers__two_keys(port: int, secret: str) -> None:
    """Whichever of them a server hands over: never is a wrong one put right."""
    with Connection(port) as connection:
        for first, second in ((secret, "rc_wrong"), ("rc_wrong", secret), (secret, secret)):
            answer = connection.send("GET", "/v1/runs", x_api_key=first, X_API_KEY=second)
            assert answer.status == 403
