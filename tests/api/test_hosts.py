"""The settings of a host change nothing."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.generics import GenericAPIView
from rest_framework.pagination import CursorPagination
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response

from django_run_cancel.models import Cancellation
from tests.api.helpers import BULK, UNKNOWN, assert_sound, database_away, key_client
from tests.helpers import ApiClient, make_run, make_runs


class RefusesAll(BaseAuthentication):
    """An authentication of the host's, that our clients could never pass."""

    def authenticate(self, request: Any) -> None:
        raise AuthenticationFailed

    def authenticate_header(self, request: Any) -> str:
        return "Bearer"


def handler(error: Exception, context: Any) -> Response:
    return Response({"host": "was here"}, 500)


CHANGED = {
    "ALLOWED_VERSIONS": ["v9"],
    "COMPACT_JSON": False,
    "DEFAULT_AUTHENTICATION_CLASSES": [f"{__name__}.RefusesAll"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "tests.missing",
    "DEFAULT_FILTER_BACKENDS": ["rest_framework.filters.OrderingFilter"],
    "DEFAULT_METADATA_CLASS": None,
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.PageNumberPagination",
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.FormParser"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.StaticHTMLRenderer"],
    "DEFAULT_THROTTLE_CLASSES": ["rest_framework.throttling.AnonRateThrottle"],
    "DEFAULT_THROTTLE_RATES": {"anon": "1/day", "user": "1/day"},
    "DEFAULT_VERSIONING_CLASS": "rest_framework.versioning.AcceptHeaderVersioning",
    "DATETIME_FORMAT": "%Y",
    "EXCEPTION_HANDLER": f"{__name__}.handler",
    "NON_FIELD_ERRORS_KEY": "oops",
    "NUM_PROXIES": 0,
    "PAGE_SIZE": 1,
    "STRICT_JSON": False,
    "UNAUTHENTICATED_TOKEN": None,
    "UNAUTHENTICATED_USER": None,
    "UNICODE_JSON": False,
    "URL_FORMAT_OVERRIDE": "as",
}


POLICIES = [
    "authentication_classes",
    "content_negotiation_class",
    "filter_backends",
    "metadata_class",
    "pagination_class",
    "parser_classes",
    "permission_classes",
    "renderer_classes",
    "throttle_classes",
    "versioning_class",
]
RENDERING = {"compact": False, "strict": False, "ensure_ascii": False}


def answers(client: ApiClient) -> list[Any]:
    """Return what is answered to requests that change nothing."""
    responses = [
        client.get("/v1/runs?page_size=2"),
        client.get("/v1/runs?ordering=run_id&page=2&page_size=3"),
        client.get("/v1/cancellations"),
        client.get(f"/v1/runs/{UNKNOWN}"),
        client.get(BULK),
        client.send(BULK, {"run_ids": [1]}),
        client.send(BULK, b"", "text/plain"),
        client.send(BULK, b"a", "text/plain"),
        client.generic("OPTIONS", BULK),
        ApiClient().get("/v1/runs"),
        ApiClient().get("/v1/openapi.json"),
        client.get("/v1/runs", headers={"Accept": "application/json; version=v1"}),
        client.get("/v1/runs?as=html"),
    ]
    return [(response.status_code, response.content, response.headers) for response in responses]


@pytest.mark.django_db
def test_rest_framework__changes_nothing(
    api: ApiClient, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runs(3)
    api.cancel(["tsk_1"])
    before = answers(api)
    settings.REST_FRAMEWORK = CHANGED
    # What REST framework reads when it is imported is in these.
    for name in POLICIES:
        monkeypatch.setattr(GenericAPIView, name, ["not ours"])
    for name, value in RENDERING.items():
        monkeypatch.setattr(JSONRenderer, name, value)
    monkeypatch.setattr(CursorPagination, "page_size", 1)
    assert answers(api) == before


@pytest.mark.django_db
def test_rest_framework__times_in_utc(api: ApiClient, settings: Any) -> None:
    settings.REST_FRAMEWORK = {"DATETIME_FORMAT": "iso-8601"}
    run = make_run()
    shown = api.get(f"/v1/runs/{run.run_id}").json()["created_at"]
    assert shown == run.created_at.isoformat().replace("+00:00", "Z")


@pytest.fixture
def atomic_requests(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize(("status", "answered"), [("completed", 409), (None, 404)])
def test_atomic_requests__record_of_a_refusal_is_kept(status: str | None, answered: int) -> None:
    run_id = make_run(status).run_id if status else "tsk_1"
    response = key_client().send(f"/v1/runs/{run_id}/cancel", b"")
    assert_sound(response, answered)
    record = Cancellation.objects.get(cancellation_id=response["Cancellation-Id"])
    assert record.failed_count == 1
    assert record.items.count() == 1


@pytest.mark.usefixtures("atomic_requests")
def test_atomic_requests__after_an_error() -> None:
    """Neither this request's transaction nor the next one's is spoilt."""
    run = make_run()
    client = key_client()
    assert_sound(client.cancel([run.run_id, 5]), 422)
    with database_away():
        assert client.cancel([run.run_id]).status_code == 503
    assert_sound(client.cancel([run.run_id]), 200)
    assert Cancellation.objects.count() == 1


@pytest.mark.django_db
def test_atomic_requests__in_a_test_of_the_hosts(
    api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts test in a transaction too: an error must not spoil it."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    assert_sound(api.cancel([5]), 422)
    assert_sound(api.cancel(["tsk_1"]), 200)
