"""Headers that no well-meaning client sends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.helpers import GETS, assert_sound, logged_in, make_user
from tests.helpers import ApiClient, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db

HEADERS = ["", " ", "\0", "a\r\nb", "\xff\xe9", "\ud800", "a" * 9_000, "'--", "Ā", "%00"]


@pytest.mark.parametrize("value", HEADERS)
def test_header__key(value: str, db: None) -> None:
    run = make_run()
    for client in (ApiClient(), logged_in(make_user("cancel_run"))):
        response = client.cancel([run.run_id], x_api_key=value)
        assert assert_sound(response, 403) == {"detail": "Invalid credentials"}
    assert statuses(run) == ["queued"]


@pytest.mark.parametrize("value", ["", " ", "\0", "a\0", "\ud800", "a" * 256, "a" * 9_000])
def test_header__unusable_idempotency_key(value: str, api: ApiClient) -> None:
    run = make_run()
    (error,) = assert_sound(api.cancel([run.run_id], idempotency_key=value), 422)["detail"]
    assert (error["type"], error["loc"]) == ("string_invalid", ["header", "idempotency-key"])
    assert statuses(run) == ["queued"]


@pytest.mark.parametrize("value", ["\xff\xe9", "a" * 255, "'--", "Ā", "a\tb", "🦀"])
def test_header__strange_idempotency_key(value: str, api: ApiClient) -> None:
    run = make_run()
    for _ in range(2):
        answer = assert_sound(api.cancel([run.run_id], idempotency_key=value), 200)
        assert answer == {"cancelled": [run.run_id], "failed": []}


OTHER_HEADERS = {
    "Authorization": ["Basic", "Basic AAAA", "Basic AGE6Yg==", "Token \0", "Bearer " + "a" * 9_000],
    "Cookie": ["sessionid=\0", "sessionid=" + "a" * 9_000, "=;==;", "csrftoken=\xff", "a" * 9_000],
    "X-CSRFToken": ["\0", "a" * 9_000],
    "X-HTTP-Method-Override": ["DELETE"],
    "Accept-Language": ["de", "xx-" + "y" * 5_000, "\0"],
    "Content-Encoding": ["gzip", "br"],
    "Expect": ["100-continue", "x"],
    "Range": ["bytes=0-1"],
    "Origin": ["null", "https://elsewhere.example", "\0"],
    "X-Forwarded-Host": ["elsewhere.example", "\0"],
    "If-None-Match": ["*"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OTHER_HEADERS.items() for value in values]
)
def test_header__other(name: str, value: str, api: ApiClient) -> None:
    run = make_run()
    response = api.cancel([run.run_id], **{name.replace("-", "_"): value})
    assert assert_sound(response, 200) == {"cancelled": [run.run_id], "failed": []}
    for path in GETS:
        assert_sound(api.get(path, headers={name: value}), 200, 404)


@pytest.mark.parametrize("host", ["elsewhere.example", "a b", "[", "\0", "", "a" * 9_000, "x:y"])
def test_header__host(host: str, secret: str, settings: Any) -> None:
    """CommonMiddleware answers for itself; without it the links of a page need the host."""
    make_runs(2)
    assert ApiClient(secret).get("/v1/runs", headers={"Host": host}).status_code == 400
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "common" not in name]
    api = ApiClient(secret)
    assert_sound(api.get("/v1/runs?page_size=1", headers={"Host": host}), 400)
    assert_sound(api.cancel(["tsk_1"], Host=host), 200)
