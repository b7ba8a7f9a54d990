"""Bodies with a wrong length, in chunks, too large, or cut off, on the endpoint for many runs."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.exceptions import RequestDataTooBig
from django.core.handlers.asgi import ASGIRequest
from rest_framework.request import Request

from django_run_cancel.api import parsers
from tests.api.helpers import BULK, assert_sound, ids_of, raw_request
from tests.helpers import ApiClient, make_run, statuses

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("declared", "status"),
    [
        ("1000", 400),
        ("50000000", 413),
        ("9" * 30, 413),
        ("9" * 4_200, 413),
        ("9" * 5_000, 422),
        ("-1", 422),
        ("abc", 422),
        ("0x10", 422),
        ("\u0661\u0661", 422),
        ("1e3", 422),
    ],
)
def test_bulk__wrong_content_length(declared: str, status: int, api: ApiClient) -> None:
    """Without a length that it can read, Django takes the body to be empty."""
    run = make_run()
    body = io.BytesIO(ids_of(run))
    response = raw_request(api, **{"CONTENT_LENGTH": declared, "wsgi.input": body})
    assert_sound(response, status)
    assert statuses(run) == ["queued"]


@pytest.mark.parametrize("limit", [None, 0, 200, 201])
def test_bulk__limit_of_host(limit: int | None, api: ApiClient, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = limit
    effective = limit or parsers.MAX_BODY_BYTES
    for size, status in ((effective, 200), (effective + 1, 413)):
        body = b'{"run_ids": []}'.ljust(size)
        assert_sound(api.send(BULK, body), status)
        in_chunks = {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}
        assert_sound(raw_request(api, **CHUNKED, **in_chunks), status)


class Endless:
    """A body that never ends, of which nobody may ask for much at a time."""

    def __init__(self, error: Exception | None = None) -> None:
        self.read_bytes = 0
        self.error = error

    def readline(self, size: int) -> bytes:
        raise AssertionError

    def read(self, size: int) -> bytes:
        assert size <= parsers.MAX_BODY_BYTES + 1
        if self.error is not None:
            raise self.error
        self.read_bytes += size
        return b"a" * size


@pytest.mark.parametrize("key", [True, False])
def test_bulk__large_body_is_not_read(key: bool, api: ApiClient) -> None:
    stream = Endless()
    client = api if key else ApiClient()
    declared = {"CONTENT_LENGTH": "50000000000", "wsgi.input": stream}
    assert_sound(raw_request(client, **declared), 413 if key else 403)
    assert stream.read_bytes == 0


@pytest.mark.parametrize("declared", ["50000000", "100"])
def test_bulk__broken_connection(declared: str, api: ApiClient) -> None:
    stream = Endless(ConnectionResetError())
    response = raw_request(api, **{"CONTENT_LENGTH": declared, "wsgi.input": stream})
    assert_sound(response, 413 if declared == "50000000" else 400)


CHUNKED = {"HTTP_TRANSFER_ENCODING": "chunked"}


def test_bulk__chunked_where_the_server_delimits(api: ApiClient) -> None:
    run = make_run()
    body = io.BytesIO(ids_of(run))
    response = raw_request(api, **CHUNKED, **{"wsgi.input": body, "wsgi.input_terminated": True})
    assert assert_sound(response, 200) == {"cancelled": [run.run_id], "failed": []}


def test_bulk__chunked_where_it_does_not(api: ApiClient) -> None:
    run = make_run()
    response = raw_request(api, **CHUNKED, **{"wsgi.input": Endless(AssertionError())})
    assert_sound(response, 411)
    assert statuses(run) == ["queued"]


def test_bulk__chunked_without_end(api: ApiClient) -> None:
    stream = Endless()
    response = raw_request(api, **CHUNKED, **{"wsgi.input": stream, "wsgi.input_terminated": True})
    assert_sound(response, 413)
    assert stream.read_bytes <= parsers.MAX_BODY_BYTES + 1


class MalformedChunk(Exception):
    """Servers raise what they like."""


def test_bulk__chunked_malformed(api: ApiClient) -> None:
    stream = Endless(MalformedChunk())
    response = raw_request(api, **CHUNKED, **{"wsgi.input": stream, "wsgi.input_terminated": True})
    assert_sound(response, 400)


def asgi_request(body: bytes) -> ASGIRequest:
    headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": BULK, "query_string": b""}
    return ASGIRequest({**scope, "headers": headers}, io.BytesIO(body))


def test_read_chunked_body__under_asgi() -> None:
    """Django has read the whole body from the server before."""
    body = b'{"run_ids": []}'
    assert parsers.read_chunked_body(Request(asgi_request(body))) == body
    with pytest.raises(RequestDataTooBig):
        parsers.read_chunked_body(Request(asgi_request(b"a" * 3_000_000)))


def test_bulk__body_read_by_middleware(api: ApiClient, settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.api.middleware.ReadsBody"]
    run = make_run()
    assert assert_sound(api.cancel([run.run_id]), 200)["cancelled"] == [run.run_id]
