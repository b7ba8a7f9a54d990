"""What bodies of bulk cancellations may be, and what is said of others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.helpers import CANCELLATIONS, assert_sound, in_time, start_bulk, statements
from tests.helpers import ApiClient

pytestmark = pytest.mark.django_db

QUEUED = {"filter": {"status": "queued"}}


def wrong(client: ApiClient, body: Any) -> list[tuple[str, list[Any]]]:
    """Return the types and the places of what is wrong with a body."""
    with statements() as seen:
        answer = assert_sound(client.send(CANCELLATIONS, body), 422)
    assert not [query for query in seen if "INSERT" in query]
    return [(entry["type"], entry["loc"]) for entry in answer["detail"]]


class TestValidation:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({}, ("selection_invalid", ["body"])),
            ({"reason": "x"}, ("selection_invalid", ["body"])),
            ({"run_ids": [], **QUEUED}, ("selection_invalid", ["body"])),
            ([], ("model_attributes_type", ["body"])),
            ("", ("missing", ["body"])),
            ("{", ("json_invalid", ["body", 1])),
            ({"run_ids": None}, ("list_type", ["body", "run_ids"])),
            ({"run_ids": "x"}, ("list_type", ["body", "run_ids"])),
            ({"run_ids": ["x", 5]}, ("string_type", ["body", "run_ids", 1])),
            ({**QUEUED, "dryrun": True}, ("extra_forbidden", ["body", "dryrun"])),
            ({**QUEUED, "dry_run": 1}, ("bool_type", ["body", "dry_run"])),
            ({**QUEUED, "force": "yes"}, ("bool_type", ["body", "force"])),
            ({**QUEUED, "reason": None}, ("string_type", ["body", "reason"])),
            ({"filter": None}, ("missing", ["body", "filter"])),
            ({"filter": []}, ("model_attributes_type", ["body", "filter"])),
            ({"filter": {}}, ("too_short", ["body", "filter"])),
        ],
    )
    def test_body(self, body: Any, expected: Any, api: ApiClient) -> None:
        assert wrong(api, body) == [expected]

    @pytest.mark.parametrize(
        ("name", "value", "kind"),
        [
            ("colour", "red", "extra_forbidden"),
            ("status", "completed", "enum"),
            ("status", "runing", "enum"),
            ("status", ["running", "cancelled"], "enum"),
            ("status", [], "enum"),
            ("status", None, "enum"),
            ("status", {"a": 1}, "enum"),
            ("status", [[]], "enum"),
            ("type", 5, "string_type"),
            ("type", "x" * 65, "string_invalid"),
            ("parent", None, "string_type"),
            ("ancestor", "\0", "string_invalid"),
            ("title", "\ud800", "string_invalid"),
            ("created_after", "yesterday", "datetime_parsing"),
            ("created_before", 20260101, "datetime_parsing"),
            ("started_after", None, "datetime_parsing"),
            ("metadata", {}, "dict_invalid"),
            ("metadata", None, "dict_invalid"),
            ("metadata", [["a", 1]], "dict_invalid"),
            ("metadata", {str(n) + "k": n for n in range(21)}, "dict_invalid"),
            ("metadata", {"": 1}, "dict_invalid"),
            ("metadata", {"0": 1}, "dict_invalid"),
            ("metadata", {"-1": 1}, "dict_invalid"),
            ("metadata", {"a\0": 1}, "dict_invalid"),
            ("metadata", {'a"b': 1}, "dict_invalid"),
            ("metadata", {"-a": 1}, "dict_invalid"),
            ("metadata", {"k" * 256: 1}, "dict_invalid"),
        ],
    )
    def test_filter(self, name: str, value: Any, kind: str, api: ApiClient) -> None:
        body = {"filter": {"type": "task", name: value}}
        assert wrong(api, body) == [(kind, ["body", "filter", name])]

    @pytest.mark.parametrize(
        "value", [[], {}, "\0", "x" * 256, float("nan"), float("inf"), 2**63, -(2**63) - 1, 10**400]
    )
    def test_metadata_is_no_scalar(self, value: Any, api: ApiClient) -> None:
        body = {"filter": {"metadata": {"good": 1, "bad": value}}}
        assert wrong(api, body) == [("scalar_type", ["body", "filter", "metadata", "bad"])]

    def test_messages_say_what_there_is(self, api: ApiClient) -> None:
        sent = [{"filter": {"status": "runing"}}, {"filter": {"colour": 1}}, {"filter": {}}]
        told = [api.send(CANCELLATIONS, body).json()["detail"][0] for body in sent]
        assert [entry["msg"] for entry in told] == [
            "Input should be one of created, queued, running, paused",
            "Extra inputs are not permitted; choose from status, type, tenant, parent, ancestor, "
            "backend, title, created_after, created_before, started_after, started_before, "
            "metadata",
            "Name at least one filter: without any, all runs would match",
        ]
        assert [entry["input"] for entry in told] == ["runing", 1, {}]

    @pytest.mark.parametrize(
        "body",
        [
            {"run_ids": [5] * 60_000},
            {f"field{n}": 1 for n in range(20_000)},
            {"x" * 1_000_000: 1},
            {"filter": {"x" * 1_000_000: "y" * 1_000_000}},
            {"filter": {"status": ["queued", "x"] * 50_000}},
            {"filter": {"metadata": {"x" * 1_000_000: 1}}},
        ],
    )
    def test_errors_stay_small(self, body: Any, api: ApiClient) -> None:
        with in_time():
            assert wrong(api, body)

    def test_many_ids(self, api: ApiClient) -> None:
        record = start_bulk(api, {"run_ids": [f"tsk_{n:032x}" for n in range(50_000)]})
        assert record["total_count"] == 50_000
