"""The OpenAPI document, on its own and among the views of a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import yaml
from django.core.management import call_command
from django.test import Client
from django.utils import translation
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.validation import validate_schema
from rest_framework.permissions import IsAuthenticated

from django_run_cancel.api.document_view import DocumentView
from django_run_cancel.cancellation import cancel_runs
from tests.api.helpers import (
    CANCELLATIONS,
    CONTRACT,
    UNKNOWN,
    assert_sound,
    key_client,
    logged_in,
    make_user,
)
from tests.helpers import ApiClient, make_run

COMPONENTS = [
    "BulkCancelRunsRequest",
    "BulkCancelRunsResponse",
    "HTTPValidationError",
    "ValidationError",
]
PATHS = {
    "/v1/cancellations",
    "/v1/cancellations/{cancellation_id}",
    "/v1/cancellations/{cancellation_id}/abort",
    "/v1/cancellations/{cancellation_id}/items",
    "/v1/cancellations/{cancellation_id}/retry",
    "/v1/runs",
    "/v1/runs/cancel",
    "/v1/runs/{run_id}",
    "/v1/runs/{run_id}/cancel",
}
READ = {"200", "403", "429", "503"}
WRITE = READ | {"400", "413", "415", "422"}
STATUSES = {
    "get /v1/runs": READ | {"422"},
    "get /v1/runs/{run_id}": READ | {"404"},
    "get /v1/cancellations": READ | {"422"},
    "get /v1/cancellations/{cancellation_id}": READ | {"404"},
    "get /v1/cancellations/{cancellation_id}/items": READ | {"404", "422"},
    "post /v1/cancellations": WRITE | {"202"},
    "post /v1/cancellations/{cancellation_id}/abort": WRITE | {"404", "409"},
    "post /v1/cancellations/{cancellation_id}/retry": WRITE | {"404"},
    "post /v1/runs/cancel": {"200", "422"},
    "post /v1/runs/{run_id}/cancel": WRITE | {"404", "409"},
}
AUTO_SCHEMA = {"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"}


def assert_contract(document: dict[str, Any]) -> None:
    """Check path item and components, key for key; only the other product's brand may differ."""
    contract = yaml.safe_load((CONTRACT / "openapi.yaml").read_text())
    expected = contract["paths"]["/v1/runs/cancel"]
    for place in (expected["post"]["parameters"][0], expected["post"]["parameters"][0]["schema"]):
        assert place["description"].startswith("Skyvern API key for authentication.")
        place["description"] = "API key for authentication."
    assert document["openapi"].startswith("3.1")
    assert document["paths"]["/v1/runs/cancel"] == expected
    assert list(contract["components"]["schemas"]) == COMPONENTS
    for name in COMPONENTS:
        assert document["components"]["schemas"][name] == contract["components"]["schemas"][name]


def spectacular(tmp_path: Any, *options: str) -> dict[str, Any]:
    """Return what ``manage.py spectacular`` writes; any warning is an error."""
    file = tmp_path / "openapi.json"
    common = ["--validate", "--fail-on-warn", "--format", "openapi-json", "--file", str(file)]
    call_command("spectacular", *common, *options)
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def served(client: Client | None = None, query: str = "") -> dict[str, Any]:
    response = (client or Client()).get(f"/v1/openapi.json{query}")
    document: dict[str, Any] = assert_sound(response, 200)
    return document


def examples_of(part: Any) -> dict[str, Any]:
    examples = part["content"]["application/json"]["examples"]
    return {name: example["value"] for name, example in examples.items()}


def test_document__contract() -> None:
    document = served()
    assert_contract(document)
    validate_schema(document)
    assert set(document["paths"]) == PATHS


def test_document__bulk_cancellations() -> None:
    """No component has properties that requests may not have, and each example is valid."""
    document = served()
    schemas = document["components"]["schemas"]
    for name in ("BulkCancellationRequest", "RunSelection"):
        assert schemas[name]["additionalProperties"] is False
        assert schemas[name]["minProperties"] == 1
    operation = document["paths"]["/v1/cancellations"]["post"]
    (key,) = operation["parameters"]
    assert key["name"] == "Idempotency-Key"
    assert key["schema"] == {"type": "string", "minLength": 1, "maxLength": 255}
    headers = {
        status: set(answer.get("headers", {})) for status, answer in operation["responses"].items()
    }
    assert headers == {status: set() for status in headers} | {"202": {"Location"}}
    described = [
        operation["requestBody"]["content"]["application/json"],
        *(
            operation["responses"][status]["content"]["application/json"]
            for status in ("200", "202")
        ),
    ]
    for content in described:
        resolver = {"components": document["components"], **content["schema"]}
        assert content["examples"]
        for example in content["examples"].values():
            jsonschema.validate(example["value"], resolver)


def test_document__statuses() -> None:
    operations = {
        f"{method} {path}": set(operation["responses"])
        for path, methods in served()["paths"].items()
        for method, operation in methods.items()
    }
    assert operations == STATUSES


@pytest.mark.django_db
def test_document__examples_are_what_happens(api: ApiClient) -> None:
    """Each request is answered as it says, and the record is one that has just been started."""
    operation = served()["paths"]["/v1/cancellations"]["post"]
    requests = examples_of(operation["requestBody"])
    assert list(requests) == ["ByFilter", "ByIds", "Preview"]
    by_filter, by_ids, previewed = (api.send(CANCELLATIONS, body) for body in requests.values())
    record = assert_sound(by_filter, 202)
    assert assert_sound(by_ids, 202)["force"] is True
    preview = assert_sound(previewed, 200)
    (started,) = examples_of(operation["responses"]["202"]).values()
    assert record["ip_address"] == "127.0.0.1"
    own = ("cancellation_id", "requested_by", "requested_at", "ip_address", "total_count")
    just_started = {"state": "pending", "finished_at": None}
    assert record | just_started | {name: started[name] for name in own} == started
    ((name, shown),) = examples_of(operation["responses"]["200"]).items()
    assert (name, set(shown), shown["is_capped"]) == ("WhatWouldHappen", set(preview), True)


@pytest.mark.django_db
def test_document__answers_without_values(api: ApiClient) -> None:
    """What is null in an answer may be null by the document."""
    schemas = served()["components"]["schemas"]
    cancellation = cancel_runs([UNKNOWN], requested_by="tests", tenant="").cancellation
    assert cancellation is not None
    path = f"{CANCELLATIONS}/{cancellation.cancellation_id}"
    answers = [
        ("CancellableRun", api.get(f"/v1/runs/{make_run('created').run_id}").json()),
        ("RunCancellation", api.get(path).json()),
        ("RunCancellationItem", api.get(f"{path}/items").json()["results"][0]),
        ("RunCancelError", api.get(f"/v1/runs/{UNKNOWN}").json()),
    ]
    nulls = {
        name: {key for key, value in answer.items() if value is None} for name, answer in answers
    }
    assert nulls == {
        "CancellableRun": {
            *("parent_run_id", "queued_at", "started_at", "finished_at"),
            *("cancellation_id", "stopped_at"),
        },
        "RunCancellation": {"ip_address", "finished_at", "selection", "rate", "estimated_end"},
        "RunCancellationItem": {"stopped_at"},
        "RunCancelError": set(),
    }
    for name, answer in answers:
        jsonschema.validate(answer, {"components": {"schemas": schemas}, **schemas[name]})


@pytest.mark.django_db
def test_document__with_and_without_key() -> None:
    expected = served()
    assert served(key_client()) == expected
    assert served(logged_in(make_user())) == expected
    wrong = Client().get("/v1/openapi.json", headers={"x-api-key": "rc_wrong"})
    assert_sound(wrong, 403)


@pytest.mark.django_db
def test_document__permission_of_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """SERVE_PERMISSIONS of drf-spectacular holds for this document too."""
    assert DocumentView.permission_classes == spectacular_settings.SERVE_PERMISSIONS
    monkeypatch.setattr(DocumentView, "permission_classes", [IsAuthenticated])
    assert_sound(Client().get("/v1/openapi.json"), 403)
    assert_contract(served(logged_in(make_user())))


def test_document__whatever_the_language_and_query() -> None:
    expected = served()
    assert served(query="?lang=de&version=2") == expected
    with translation.override("de"):
        assert served() == expected


@pytest.mark.parametrize("oas_version", ["3.0.3", "3.1.0", "3.1.1"])
def test_document__whatever_the_version_of_the_host(
    oas_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = served()
    monkeypatch.setattr(spectacular_settings, "OAS_VERSION", oas_version)
    assert served() == expected


def test_document__threads() -> None:
    """A schema on a class instead of a method loses components here."""
    expected = Client().get("/v1/openapi.json").content

    def fetch(number: int) -> bool:
        client = Client()
        return all(client.get("/v1/openapi.json").content == expected for _ in range(10))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(fetch, range(6)))


@pytest.mark.parametrize("rest_framework", [{}, AUTO_SCHEMA])
def test_spectacular__default_version(rest_framework: Any, tmp_path: Any, settings: Any) -> None:
    settings.REST_FRAMEWORK = rest_framework
    document = spectacular(tmp_path)
    assert document["openapi"] == "3.0.3"
    assert set(document["paths"]) == PATHS


@pytest.mark.parametrize("rest_framework", [{}, AUTO_SCHEMA])
def test_spectacular__contract(
    rest_framework: Any, tmp_path: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REST_FRAMEWORK = rest_framework
    monkeypatch.setattr(spectacular_settings, "OAS_VERSION", "3.1.0")
    assert_contract(spectacular(tmp_path))


def test_spectacular__host_with_views(tmp_path: Any, settings: Any) -> None:
    """A host's Run and Status keep their names, and ours do not mix with them."""
    settings.REST_FRAMEWORK = AUTO_SCHEMA
    settings.ROOT_URLCONF = "tests.api.host_urls"
    document = spectacular(tmp_path)
    assert {path for path in document["paths"] if path not in PATHS} == {"/jobs", "/v1/reports"}
    schemas = document["components"]["schemas"]
    assert set(schemas["Run"]["properties"]) == {"status", "progress"}
    assert schemas["StatusEnum"]["enum"] == ["new", "old"]
    assert set(schemas["CancellableRun"]["properties"]) > {"run_id", "status"}
    assert set(served()["paths"]) == PATHS


def test_spectacular__real_host(tmp_path: Any) -> None:
    """The command as people call it, with OAS_VERSION 3.1.0 from a settings file."""
    file = tmp_path / "openapi.yaml"
    command = [sys.executable, "-m", "django", "spectacular", "--validate", "--fail-on-warn"]
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.api.host_settings",
        "DATABASE_URL": "sqlite://:memory:",  # Django 6.1 connects for its checks
    }
    root = CONTRACT.parent.parent
    done = subprocess.run(
        [*command, "--file", str(file)], env=environment, cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = yaml.safe_load(file.read_text())
    assert_contract(document)
    assert {"/jobs", "/v1/reports"} < set(document["paths"])
