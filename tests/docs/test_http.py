"""The page about the HTTP API says what the API has, and nothing else."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from django.urls import URLPattern

from django_run_cancel.api import bulk_serializers, schema, serializers, urls
from django_run_cancel.api.exceptions import LengthRequired
from django_run_cancel.api.fields import MAX_IDS_PER_REQUEST
from django_run_cancel.cancellation import arguments
from tests.docs.helpers import EVERYTHING, TEXT, codes, first_column, named, rows, section
from tests.helpers import ApiClient

HTTP = TEXT["reference/http.md"]


def endpoints() -> set[str]:
    found = set()
    for pattern in urls.urlpatterns:
        assert isinstance(pattern, URLPattern)
        route = re.sub(r"<\w+:(\w+)>", r"{\1}", str(pattern.pattern)).rstrip("/")
        view = pattern.callback.cls  # type: ignore[attr-defined]
        for method in ("get", "post", "put", "patch", "delete"):
            if hasattr(view, method):
                found.add(f"{method.upper()} /v1/{route}")
    return found


class TestHttp:
    def test_endpoints(self) -> None:
        assert set(named(HTTP)) == endpoints()
        mentioned = set(re.findall(r"(?:GET|POST|PUT|PATCH|DELETE) /[\w/{}.]*[\w}]", EVERYTHING))
        assert mentioned <= endpoints()

    def test_parameters(self) -> None:
        for path, methods in document()["paths"].items():
            for method, operation in methods.items():
                text = section(HTTP, f"`{method.upper()} {path}`")
                if "as above" in text:
                    assert {"page_size", "cursor"} <= set(codes(text)) or method == "post"
                    continue
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "query":
                        assert parameter["name"] in first_column(text), path

    def test_no_other_parameters(self) -> None:
        table = section(HTTP, "`GET /v1/runs`").split("The answer has")[0]
        assert set(first_column(table)) == self.run_parameters()

    @pytest.mark.parametrize(
        ("heading", "serializer"),
        [
            ("GET /v1/runs", serializers.CancellableRunSerializer),
            ("GET /v1/cancellations", serializers.RunCancellationSerializer),
            (
                "GET /v1/cancellations/{cancellation_id}/items",
                serializers.RunCancellationItemSerializer,
            ),
        ],
    )
    def test_fields(self, heading: str, serializer: Any) -> None:
        table = section(HTTP, f"`{heading}`").rsplit("| Field |", 1)[1]
        assert first_column(table) == list(serializer().fields)

    def test_bodies(self) -> None:
        for heading, names in {
            "POST /v1/runs/cancel": [
                *serializers.BulkCancelRunsBodySerializer().fields,
                *serializers.BulkCancelRunsResponseSerializer().fields,
                "Idempotency-Key",
                "Cancellation-Id",
            ],
            "POST /v1/runs/{run_id}/cancel": [*serializers.CancelRunRequestSerializer().fields],
            "POST /v1/cancellations": [
                *bulk_serializers.BulkCancellationRequestSerializer().fields,
                *bulk_serializers.RunSelectionSerializer().fields,
                "Idempotency-Key",
                "Location",
                "Cancellation-Id",
                *bulk_serializers.BulkCancellationPreviewSerializer().fields,
            ],
        }.items():
            assert first_column(section(HTTP, f"`{heading}`")) == names

    def test_error_statuses(self) -> None:
        table = section(HTTP, "Errors").split("422 lists")[0]
        documented = {int(row[0]) for row in rows(table)[1:]}
        operations = [
            operation for methods in document()["paths"].values() for operation in methods.values()
        ]
        declared = {int(status) for operation in operations for status in operation["responses"]}
        assert documented == declared - {200, 202} | {405, LengthRequired.status_code}

    @pytest.mark.django_db
    def test_error_places(self, api: ApiClient) -> None:
        cancel, single, bulk = "/v1/runs/cancel", "/v1/runs/x/cancel", "/v1/cancellations"
        items = f"{bulk}/{api.cancel(['x'], idempotency_key='used')['Cancellation-Id']}/items"
        answers: list[Any] = [
            api.send(cancel, ""),
            api.send(cancel, {}),
            api.send(cancel, "{"),
            api.send(cancel, []),
            api.cancel("x"),
            api.cancel(["x"] * 101),
            api.cancel(["x", 1]),
            api.send(single, {"force": 1}),
            api.send(single, {"reason": 1}),
            api.send(single, {"reason": "\0"}),
            api.cancel(["x"], idempotency_key=""),
            api.cancel(["y"], idempotency_key="used"),
            api.get("/v1/runs", {"cursor": "zz"}),
            *(api.get(items, {name: "zz"}) for name in ("outcome", "stop_state")),
            *(api.send(bulk, body) for body in ({}, {"name": 1}, {"run_ids": [], "dry_run": 1})),
            *(
                api.send(bulk, {"filter": each})
                for each in (
                    *(None, [], {}, {"name": 1}, {"type": 1}, {"type": "\0"}, {"status": 1}),
                    *({"created_after": 1}, {"metadata": {}}, {"metadata": {"key": {}}}),
                )
            ),
            *(
                api.get("/v1/runs", {name: "\0"})
                for name in sorted(self.run_parameters() - {"cursor"})
            ),
        ]
        seen: dict[str, set[str]] = {}
        for answer in answers:
            assert answer.status_code == 422, answer.content
            for entry in json.loads(answer.content)["detail"]:
                loc = re.sub(r"\d+", "#", json.dumps(entry["loc"]))
                loc = re.sub(r'"filter", "(?!metadata", )\w+"', '"filter", name', loc)
                loc = re.sub(r'"(name|key)"', r"\1", loc)
                seen.setdefault(entry["type"], set()).add(loc)
        assert seen == self.error_table()

    def error_table(self) -> dict[str, set[str]]:
        table = rows(section(HTTP, "Errors").split("| `type` |")[1])
        return {
            codes(row[0])[0]: {re.sub("index|position", "#", loc) for loc in codes(row[1])}
            for row in table
            if row[0].startswith("`")
        }

    def run_parameters(self) -> set[str]:
        operation = document()["paths"]["/v1/runs"]["get"]
        return {parameter["name"] for parameter in operation["parameters"]}


@cache
def document() -> Any:
    return schema.generate_document()


def test_limits() -> None:
    http, python = HTTP, TEXT["explanation.md"]
    assert f"0 to {MAX_IDS_PER_REQUEST}" in http
    assert f"up to {arguments.MAX_REASON_LENGTH:,} characters" in http
    assert f"1 to {arguments.MAX_LABEL_LENGTH} characters" in http
    assert f"{arguments.MAX_RUN_IDS:,} per call" in python
