"""Paths, query strings and methods that no well-meaning client sends."""

from __future__ import annotations

import base64

import pytest
from django.http import HttpResponse

from django_run_cancel.models import Cancellation
from tests.api.helpers import (
    CANCELLATIONS,
    ENDPOINTS,
    GETS,
    POSTS,
    assert_sound,
    cursor,
    in_time,
    nothing_changes,
    raw_request,
)
from tests.helpers import ApiClient, make_run, make_runs

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "method", ["OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PURGE", "\0", "GET", "HEAD", "POST"]
)
def test_method__not_allowed(method: str, api: ApiClient) -> None:
    for path in ENDPOINTS:
        allowed = "POST" if path in POSTS else "GET, HEAD"
        allowed += ", POST" if path == CANCELLATIONS else ""
        for slash in ("", "/") if path != "/v1/openapi.json" else ("",):
            response = api.generic(method, path + slash)
            if method in allowed:
                assert_sound(response, 200, 404, 422)
                continue
            answer = assert_sound(response, 405)
            assert method == "HEAD" or answer == {"detail": "Method Not Allowed"}
            assert response["Allow"] == allowed


@pytest.mark.parametrize("key", [True, False])
def test_any__is_for_one_caller(key: bool, api: ApiClient) -> None:
    for path in ENDPOINTS:
        response = ask(api if key else ApiClient(), path)
        assert response["Cache-Control"] == "no-store, private"


def test_method__head(api: ApiClient) -> None:
    for path in GETS:
        looked, asked = api.get(path), api.head(path)
        assert asked.status_code == looked.status_code
        assert asked.content == b""
        assert asked["Content-Length"] == looked["Content-Length"]


ACCEPTS = ["text/html", "application/xml", "*/*;q=0", "garbage", "application/json; indent=8", "\0"]


def ask(client: ApiClient, path: str, query: str = "", **headers: str) -> HttpResponse:
    method = "POST" if path in POSTS else "GET"
    return client.generic(method, f"{path}?{query}", headers=headers)


@pytest.mark.parametrize("accept", [*ACCEPTS, ", ".join(["a/b"] * 2_000)])
def test_any__accept(accept: str, api: ApiClient) -> None:
    for path in ENDPOINTS:
        response = ask(api, path, Accept=accept)
        assert_sound(response, *({404, 422} if path in POSTS else {200, 404}))


QUERIES = {
    "format": "format=xml",
    "format of the browsable API": "format=api",
    "2,000 parameters": "&".join(f"a{n}=1" for n in range(2_000)),
    "900 statuses": "&".join(["status=queued"] * 900),
    "900 wrong statuses": "&".join(["status=" + "x" * 100] * 900),
    "NUL": "status=%00&type=%00&parent=%00&cursor=%00&page_size=%00&lang=%00&version=%00",
    "newlines": "lang=%0d%0a&version=a%0d%0aSet-Cookie:%20a=b&format=%0a",
    "bytes that are no text": "type=%ff&parent=%ed%a0%80&status=%fe",
    "broken percent": "type=%&parent=%zz&a=%",
    "unescaped": 'type="<>\\^`{|}\u00e9\U0001f980',
    "statuses as in forms": "status[0]x=1&status[1]=queued",
    "brackets": "type[]=1&[=]&]=[",
    "long": "type=" + "x" * 20_000,
    "long name": "x" * 20_000,
    "version": "version=" + "x" * 5_000,
    "language": "lang=xx_YY@z.utf-8",
    "semicolons": ";".join(["a=b"] * 2_000),
}


@pytest.mark.parametrize("name", QUERIES)
def test_any__query(name: str, api: ApiClient) -> None:
    for path in ENDPOINTS:
        with in_time():
            response = ask(api, path, QUERIES[name])
        assert_sound(response, 200, 400, 404, 422)
        assert "Set-Cookie" not in response.headers
        assert len(str(response.headers)) < 1_000


FILTERS = {
    "status": ["", "QUEUED", "queued,running", "ca\u0308", "\0"],
    "page_size": [
        "",
        "0",
        "-1",
        "101",
        "1e2",
        "1.0",
        "0050",
        "9" * 5_000,
        "\u0665",
        "1_0",
        " 5",
        "0x5",
    ],
    "created_after": [
        "",
        "yesterday",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "10000-01-01T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-01T00:00:00+99:99",
        "2026-01-01T00:00:00\0",
        "1" * 5_000,
        "\u0662026-01-01",
    ],
    "parent": ["a" * 65, "\0", "tsk\0"],
    "type": ["a" * 65, "\0"],
}
FILTERS["created_before"] = FILTERS["created_after"]


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in FILTERS.items() for v in values]
)
def test_list__wrong_filter(name: str, value: str, api: ApiClient) -> None:
    (error,) = assert_sound(api.get("/v1/runs", {name: value}), 422)["detail"]
    assert error["loc"] == ["query", name]
    assert error["input"] in (value, value[:100] + "…")


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00Z",
        "0001-01-01",
        "9999-12-31T23:59:59.999999Z",
        "1969-12-31T23:59:59Z",
        "2026-01-01T00:00:00+00:00",
        "2026-01-01 00:00:00",
        "2026-W01-1T00:00",
    ],
)
def test_list__extreme_moments(moment: str, api: ApiClient) -> None:
    run = make_run()
    after = assert_sound(api.get("/v1/runs", {"created_after": moment}), 200)["results"]
    before = assert_sound(api.get("/v1/runs", {"created_before": moment}), 200)["results"]
    assert [found["run_id"] for found in after + before] == [run.run_id]


POSITIONS = {
    "text": "yesterday",
    "blank": "",
    "NUL": "2026-01-01\0",
    "surrogate": "\ud800",
    "year 1 with an offset": "0001-01-01 00:00:00+14:00",
    "year 9999 with an offset": "9999-12-31 23:59:59-12:00",
    "year 10000": "10000-01-01 00:00:00+00:00",
    "huge": "9" * 5_000,
    "above 64 bits": str(2**63),
    "zeros in front": "1".zfill(20),
    "negative": "-1",
    "float": "1.5",
}
CURSORS = {
    "not base64": "\u00e9",
    "bad padding": "a",
    "no text": base64.b64encode(b"\xff\xfe").decode(),
    "offset 10**30": cursor(o=str(10**30)),
    "offset above the bound": cursor(o="100001"),
    "offset of 5,000 digits": cursor(o="9" * 5_000),
    "negative offset": cursor(o="-1"),
    "offset junk": cursor(o="x"),
    "reverse junk": cursor(r="x"),
    "reverse of 5,000 digits": cursor(r="9" * 5_000),
    "blank fields": cursor(o="", r="", p=""),
    **{f"position: {name}": cursor(p=position) for name, position in POSITIONS.items()},
    **{f"position, back: {name}": cursor(p=at, r="1") for name, at in POSITIONS.items()},
}


@pytest.mark.parametrize("name", CURSORS)
def test_list__broken_cursor(name: str, api: ApiClient) -> None:
    """All of them, on every list; the items alone are ordered by a number."""
    runs = make_runs(3)
    record = api.cancel([run.run_id for run in runs])["Cancellation-Id"]
    for path in ("/v1/runs", "/v1/cancellations", f"/v1/cancellations/{record}/items"):
        with in_time():
            response = api.get(path, {"cursor": CURSORS[name]})
        (error,) = assert_sound(response, 422)["detail"]
        assert (error["type"], error["loc"]) == ("cursor_invalid", ["query", "cursor"])


@pytest.mark.parametrize(
    "tokens",
    [
        {},
        {"r": "1"},
        {"r": "-7"},
        {"o": "100000"},
        {"o": "100000", "r": "1"},
        {"p": "0001-01-01 00:00:00+00:00"},
        {"p": "0001-01-01 00:00:00+00:00", "r": "1", "o": "2"},
        {"p": "9999-12-31 23:59:59.999999+00:00", "o": "3"},
        {"p": "2026-01-01", "junk": "\0"},
    ],
)
def test_list__strange_cursor(tokens: dict[str, str], api: ApiClient) -> None:
    make_runs(3)
    api.cancel(["tsk_1"])
    for path in ("/v1/runs", "/v1/cancellations"):
        with in_time():
            answer = assert_sound(api.get(path, {"cursor": cursor(**tokens), "page_size": 2}), 200)
        for link in filter(None, (answer["next"], answer["previous"])):
            assert_sound(api.get(link), 200)


@pytest.mark.parametrize("key", [0, 2**63 - 1])
def test_items__strange_cursor(key: int, api: ApiClient) -> None:
    record = api.cancel(["tsk_1"])["Cancellation-Id"]
    for tokens in ({"p": str(key)}, {"p": str(key), "r": "1"}):
        response = api.get(f"/v1/cancellations/{record}/items", {"cursor": cursor(**tokens)})
        assert_sound(response, 200)


IDS = {
    "NUL": "a%00b",
    "newline": "a%0ab",
    "newline at the end": "a%0a",
    "carriage return": "a%0d%0aSet-Cookie:%20a=b",
    "surrogate": "%ed%a0%80",
    "no text": "%ff%fe",
    "broken percent": "%zz%",
    "escaped percent": "%2500",
    "slashes": "a/b//c",
    "slash at the end": "a//",
    "escaped slash": "a%2Fb",
    "dots": "..%2F..%2Fetc%2Fpasswd",
    "only dots": "%2e%2e",
    "spaces": "%20a%20",
    "crab": "\U0001f980",
    "question mark": "%3Fa=b%23c",
    "quote": "'%22--;",
    "wildcards": "%25_*",
    "65 characters": "a" * 65,
    "100,000 characters": "a" * 100_000,
    "cancel": "x/cancel/cancel",
    "items": "x/items/items",
}


@pytest.mark.parametrize("name", IDS)
def test_path__hostile_id(name: str, api: ApiClient) -> None:
    make_run()
    with nothing_changes(), in_time():
        responses = [
            api.get(f"/v1/runs/{IDS[name]}"),
            api.send(f"/v1/runs/{IDS[name]}/cancel", b""),
            api.get(f"/v1/cancellations/{IDS[name]}"),
            api.get(f"/v1/cancellations/{IDS[name]}/items"),
        ]
    for response in responses:
        # The first is a GET of what only takes posts, where the id ends in /cancel.
        assert assert_sound(response, 404, 405)["detail"] in ("Not Found", "Method Not Allowed")
        assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize("path_info", ["/v1/runs/\ud800", "/v1/runs/\0", "/v1/runs/\u20ac"])
def test_path__raw(path_info: str, api: ApiClient) -> None:
    """Bytes as servers hand them over, or worse."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path_info}
    if path_info.isascii():
        assert_sound(raw_request(api, **environ), 404)
    else:  # WSGI has only characters up to 255 here
        environ["PATH_INFO"] = path_info.encode("utf-8", "surrogatepass").decode("latin-1")
        assert_sound(raw_request(api, **environ), 404)


def test_path__longer_than_any_id_is_recorded_escaped(api: ApiClient) -> None:
    response = api.send("/v1/runs/a%00b/cancel", b"")
    record = Cancellation.objects.get(cancellation_id=response["Cancellation-Id"])
    assert record.items.get().run_id == "a\\x00b…"
