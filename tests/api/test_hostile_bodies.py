"""Bodies that no well-meaning client sends: their content, charset and content type."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from django_run_cancel.models import ApiKey, Cancellation
from tests.api.helpers import (
    BULK,
    CANCELLATIONS,
    UNKNOWN,
    assert_sound,
    ids_of,
    in_time,
    logged_in,
    make_user,
    nothing_changes,
    raw_request,
)
from tests.helpers import ApiClient, make_run, statuses

pytestmark = pytest.mark.django_db

SINGLE = f"/v1/runs/{UNKNOWN}/cancel"
ONE_ID = json.dumps({"run_ids": [UNKNOWN]})

Body = Callable[[], bytes | str]

# What is sent, and the statuses that the bulk endpoint may answer with.
BODIES: dict[str, tuple[Body, set[int]]] = {
    "50 MB": (lambda: b"a" * 50_000_000, {413}),
    "50 MB of JSON": (lambda: b'{"run_ids": ["' + b"a" * 50_000_000 + b'"]}', {413}),
    "just above the limit": (lambda: b" " * 2_621_441, {413}),
    "100,000 ids": (lambda: json.dumps({"run_ids": ["tsk_1"] * 100_000}), {422}),
    "100,000 nulls": (lambda: json.dumps({"run_ids": [None] * 100_000}), {422}),
    "a million lists deep": (lambda: "[" * 1_000_000, {422}),
    "a million lists deep, closed": (lambda: "[" * 1_000_000 + "]" * 1_000_000, {422}),
    "deep in run_ids": (lambda: '{"run_ids": ' + "[" * 1_000_000, {422}),
    "400,000 objects deep": (lambda: '{"a":' * 400_000, {422}),
    "900 deep": (lambda: '{"run_ids": [' + "[" * 900 + "]" * 900 + "]}", {422}),
    "900 deep elsewhere": (
        lambda: '{"run_ids": [], "a": ' + '{"b":' * 900 + "1" + "}" * 900 + "}",
        {200},
    ),
    "5,000 digits": (lambda: '{"run_ids": [' + "9" * 5_000 + "]}", {422}),
    "5,000 digits, negative": (lambda: '{"run_ids": -' + "9" * 5_000 + "}", {422}),
    "5,000 digits elsewhere": (lambda: '{"run_ids": [], "a": ' + "9" * 5_000 + "}", {200}),
    "a million digits": (lambda: "9" * 1_000_000, {422}),
    "4,000 digits": (lambda: "9" * 4_000, {422}),
    "NaN": (lambda: '{"run_ids": [NaN]}', {422}),
    "Infinity": (lambda: '{"run_ids": -Infinity}', {422}),
    "Infinity alone": (lambda: "Infinity", {422}),
    "1e999": (lambda: '{"run_ids": [1e999, -1e999]}', {422}),
    "1e999 as a value": (lambda: '{"a": 1e999}', {422}),
    "surrogate in a key": (lambda: '{"\\ud800": "\\udfff"}', {422}),
    "surrogate in a wrong item": (lambda: '{"run_ids": [{"\\ud800": ["\\udfff"]}]}', {422}),
    "surrogate as the list": (lambda: '{"run_ids": "\\ud800"}', {422}),
    "surrogate in an id": (lambda: '{"run_ids": ["\\ud800", "a\\udfff"]}', {200}),
    "surrogate as UTF-8": (lambda: b'{"run_ids": ["\xed\xa0\x80"]}', {200}),
    "NUL in an id": (lambda: '{"run_ids": ["\\u0000", "tsk\\u0000"]}', {200}),
    "NUL in the body": (lambda: b'{"run_ids": ["\0"]}', {422}),
    "NULs": (lambda: b"\0" * 1_000, {400, 422}),
    "odd ids": (lambda: json.dumps({"run_ids": ["", " ", "\n", "🦀", "e\u0301", "\u202e"]}), {200}),
    "invalid UTF-8": (lambda: b'{"run_ids": ["\xff\xfe\x80"]}', {400}),
    "cut UTF-8": (lambda: b'{"run_ids": ["\xf0\x9f"]}', {400}),
    "BOM": (lambda: b"\xef\xbb\xbf" + ONE_ID.encode(), {200}),
    "BOM alone": (lambda: b"\xef\xbb\xbf", {422}),
    "two BOMs": (lambda: b"\xef\xbb\xbf" * 2 + ONE_ID.encode(), {422}),
    "UTF-16": (lambda: ONE_ID.encode("utf-16"), {200}),
    "UTF-16, big end first": (lambda: ONE_ID.encode("utf-16-be"), {200}),
    "UTF-32": (lambda: ONE_ID.encode("utf-32"), {200}),
    "cut UTF-32": (lambda: ONE_ID.encode("utf-32")[:-1], {400}),
    "UTF-7": (lambda: '{"run_ids": ["é"]}'.encode("utf-7"), {200}),
    "gzip": (lambda: gzip.compress(ONE_ID.encode()), {400}),
    "duplicate keys": (lambda: '{"run_ids": 1, "run_ids": ["tsk_1"]}', {200}),
    "duplicate keys, the wrong one last": (lambda: '{"run_ids": [], "run_ids": 1}', {422}),
    "100,000 keys": (lambda: json.dumps({str(n): n for n in range(100_000)}), {422}),
    "100 wide wrong items": (
        lambda: json.dumps({"run_ids": [{"\0" * 200: {"🦀" * 200: ["🦀" * 200] * 9}}] * 100}),
        {422},
    ),
    "wide and deep item": (
        lambda: json.dumps({"run_ids": [{c * 200: {c * 200: c * 200} for c in "🦀🦞🦐"}]}),
        {422},
    ),
    "an id of 60 kB": (lambda: json.dumps({"run_ids": ["a" * 60_000]}), {200}),
    "empty": (lambda: b"", {422}),
    "spaces": (lambda: b" \n\t ", {422}),
    "comma in an object": (lambda: '{"run_ids": [] , \n}', {422}),
    "half a document": (lambda: '{"run_ids": ["tsk_', {422}),
    "two documents": (lambda: "{}{}", {422}),
    "a comment": (lambda: '{"run_ids": [] /* all */}', {422}),
    "XML": (lambda: "<run_ids/>", {422}),
    "a form": (lambda: "run_ids=tsk_1", {422}),
}


@pytest.mark.parametrize("name", BODIES)
def test_post__hostile_body(name: str, api: ApiClient) -> None:
    make_run()
    body, accepted = BODIES[name]
    sent = body()
    with nothing_changes(), in_time():
        response = api.send(SINGLE, sent)
    assert_sound(response, 400, 404, 413, 422)
    with nothing_changes(), in_time():
        response = api.send(BULK, sent)
    answer = assert_sound(response, *accepted)
    if response.status_code == 200:
        asked = json.loads(sent, parse_int=str)["run_ids"]
        assert answer == {"cancelled": [], "failed": asked}


@pytest.mark.parametrize("name", BODIES)
def test_cancellations__hostile_body(name: str, api: ApiClient) -> None:
    make_run()
    with nothing_changes(), in_time():
        response = api.send(CANCELLATIONS, BODIES[name][0]())
    assert_sound(response, 202, 400, 413, 422)


@pytest.mark.parametrize("name", ["50 MB", "a million lists deep", "invalid UTF-8", "empty"])
def test_bulk__hostile_body_without_key(name: str, db: None) -> None:
    """The key comes first: whatever the body is, it is not looked at."""
    with in_time():
        response = ApiClient("rc_wrong").send(BULK, BODIES[name][0]())
    assert assert_sound(response, 403) == {"detail": "Invalid credentials"}


def test_post__fields_that_are_not_for_clients(secret: str) -> None:
    """Nothing but the fields that the documentation names has an effect."""
    runs = [make_run() for _ in range(3)]
    before = ApiKey.objects.values().get()
    wanted = {
        **{"status": "completed", "tenant": "rival", "stop_state": "killed", "backend": "x"},
        **{"requested_by": "somebody", "user_id": "1", "source": "admin", "ip_address": "9.9.9.9"},
        **{"cancellation_id": "can_x", "external_id": "x", "cancelled_count": 7, "is_staff": True},
    }
    client = ApiClient(secret)
    assert_sound(client.send(BULK, {"run_ids": [runs[0].run_id], **wanted}), 200)
    assert_sound(client.send(f"/v1/runs/{runs[1].run_id}/cancel", wanted), 200)
    for field in wanted:
        for body in (
            {"run_ids": [runs[2].run_id], field: wanted[field]},
            {"filter": {"metadata": {"a": 1}, field + "_": wanted[field]}},
        ):
            assert_sound(client.send(CANCELLATIONS, body), 422)
    assert statuses(*runs) == ["cancelled", "cancelled", "queued"]
    for record in Cancellation.objects.all():
        assert (record.tenant, record.user_id, record.source) == ("", "", "api")
        assert (record.requested_by, record.ip_address) == (client_label(), "127.0.0.1")
        assert (record.cancelled_count, record.cancellation_id[:4]) == (1, "can_")
    for run in runs[:2]:
        run.refresh_from_db()
        assert (run.tenant, run.stop_state, run.backend) == ("", "never_started", "dummy")
    after = ApiKey.objects.values().get()
    assert {**after, "last_used_at": None} == {**before, "last_used_at": None}


def client_label() -> str:
    return ApiKey.objects.get().label


def test_bulk__id_of_two_megabytes(api: ApiClient) -> None:
    """The only answer that may be large: what was asked for, once."""
    run_id = "\u20ac" * 800_000
    with in_time():
        response = api.send(BULK, f'{{"run_ids": ["{run_id}"]}}'.encode())
    assert response.json() == {"cancelled": [], "failed": [run_id]}
    assert len(response.content) < 2 * len(run_id.encode()) + 100


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ('{"run_ids": [1e999]}', "inf"),
        ('{"run_ids": [NaN]}', "nan"),
        ('{"run_ids": [' + "7" * 4_000 + "]}", "7" * 100 + "…"),
        ('{"run_ids": [' + "7" * 5_000 + "]}", "inf"),
        ('{"run_ids": [1.5]}', 1.5),
        ('{"run_ids": [true]}', True),
        ('{"run_ids": [null]}', None),
        ('{"run_ids": [[1, 2, 3, 4]]}', [1, 2, 3, "…"]),
        ('{"run_ids": [{"a": {"b": ["c", []]}}]}', {"a": {"b": "…"}}),
        ('{"run_ids": [{"a": 1, "b": 2, "c": 3, "d": 4}]}', {"a": 1, "b": 2, "c": 3}),
    ],
)
def test_bulk__echo_of_input(body: str, shown: Any, api: ApiClient) -> None:
    (error,) = assert_sound(api.send(BULK, body), 422)["detail"]
    assert (error["type"], error["loc"]) == ("string_type", ["body", "run_ids", 0])
    assert error["input"] == shown


def test_bulk__echo_of_many(api: ApiClient) -> None:
    errors = assert_sound(api.cancel([["a"], "tsk_1", {"a": 1}, 5]), 422)["detail"]
    assert [(error["loc"][2], error["input"]) for error in errors] == [(0, "…"), (2, "…"), (3, 5)]


CHARSETS = [
    "utf-8",
    "UTF8",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "utf-7",
    "latin-1",
    "cp037",
    "cp1252",
    "ascii",
    "idna",
    "punycode",
    "bz2_codec",
    "zlib",
    "hex",
    "base64",
    "rot13",
    "quopri",
    "uu",
    "raw_unicode_escape",
    "unicode_escape",
    "undefined",
    "mbcs",
    "nonsense",
    '""',
    ";;;",
]


def test_bulk__any_charset_parameter(api: ApiClient) -> None:
    """JSON says its encoding itself; no codec is used for the sake of a header."""
    run = make_run()
    for charset in CHARSETS:
        response = api.send(BULK, {"run_ids": [run.run_id]}, f"application/json; charset={charset}")
        assert assert_sound(response, 200) == {"cancelled": [run.run_id], "failed": []}


CONTENT_TYPES = {
    "application/json": 200,
    "APPLICATION/JSON ": 200,
    "application/json;": 200,
    "application/json;q=1;charset": 200,
    "application/vnd.api+json": 200,
    "application/+json": 200,
    "": 415,
    "text/json": 415,
    "text/plain": 415,
    "text/html": 415,
    "application/jsonx": 415,
    "application/json, text/plain": 415,
    "application/x-www-form-urlencoded": 415,
    "multipart/form-data": 415,
    "multipart/form-data; boundary=x": 415,
    "application/octet-stream": 415,
    "*/*": 415,
    "\0": 415,
    "é": 415,
    "a" * 8_000: 415,
}


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_bulk__any_content_type(content_type: str, api: ApiClient) -> None:
    run = make_run()
    expected = CONTENT_TYPES[content_type]
    response = raw_request(
        api,
        **{
            "CONTENT_TYPE": content_type,
            "CONTENT_LENGTH": str(len(ids_of(run))),
            "wsgi.input": io.BytesIO(ids_of(run)),
        },
    )
    assert_sound(response, expected)
    assert statuses(run) == ["cancelled" if expected == 200 else "queued"]


FORMS = {
    "form": ("application/x-www-form-urlencoded", b"run_ids=tsk_1"),
    "form of a million fields": ("application/x-www-form-urlencoded", b"a&" * 1_000_000),
    "form of 50 MB": ("application/x-www-form-urlencoded", b"a" * 50_000_000),
    "multipart without boundary": ("multipart/form-data", b"--x--"),
    "multipart with a bad boundary": ("multipart/form-data; boundary=\xe9", b"--x--"),
    "multipart": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="run_ids"\r\n\r\ntsk_1\r\n--x--\r\n',
    ),
    "multipart, a field of 5 MB": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"a" * 5_000_000 + b"\r\n",
    ),
    "multipart, a file of 50 MB": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        + b"a" * 50_000_000
        + b"\r\n--x--\r\n",
    ),
    "multipart, 10,000 parts": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\na\r\n' * 10_000 + b"--x--",
    ),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("enforce_csrf_checks", [True, False])
def test_bulk__form_with_session(name: str, enforce_csrf_checks: bool, db: None) -> None:
    """Looking for the CSRF token makes Django parse forms, before we can refuse them."""
    client = logged_in(make_user("cancel_run"), enforce_csrf_checks=enforce_csrf_checks)
    content_type, body = FORMS[name]
    make_run()
    with nothing_changes(), in_time():
        response = client.send(BULK, body, content_type)
    assert_sound(response, *({400, 403, 413} if enforce_csrf_checks else {400, 413, 415}))
