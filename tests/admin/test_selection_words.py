"""The words for the filters of bulk cancellations: of the admin, the API and the command."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import translation

from django_run_cancel.admin.selection_words import describe
from django_run_cancel.cancellation.filters import FILTERS


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ""),
        ({"status": "queued"}, "Status: queued"),
        ({"status": ["queued", "timed_out"]}, "Status: queued, timed out"),
        ({"status": "active"}, "Status: active"),
        ({"status": "stopping"}, "Status: cancelled, stopping"),
        ({"status": "nonsense"}, "Status: nonsense"),
        ({"stop_state": "killed"}, "Stop state: cancelled, stopped (killed)"),
        ({"run_type": "workflow"}, "Type: workflow"),
        ({"type": "crawl"}, "Type: crawl"),
        ({"tenant": ""}, "Tenant: (none)"),
        ({"q": "disk", "title": "Import"}, "Title: Import; Search: disk"),
        ({"parent__exact": "7"}, "Parent: 7"),
        ({"ancestor": "tsk_7"}, "Below the run: tsk_7"),
        ({"cancellation__isnull": "True"}, "Cancellation: (none)"),
        ({"cancellation__isnull": "False"}, "Cancellation ≠ (none)"),
        (
            {"metadata": {"customer": "acme", "size": 7}},
            "Metadata customer: acme; Metadata size: 7",
        ),
        ({"created_before": "2026-02-01T12:00Z"}, "Created at < 02/01/2026 08:30:00"),
        ({"started_after": "2026-02-01T12:00"}, "Started at ≥ 02/01/2026 12:00:00"),
        ({"created_at__lte": "2026-13-99"}, "Created at ≤ 2026-13-99"),
        ({"created_at__gt": "0001-01-01T00:00Z"}, "Created at > 0001-01-01T00:00Z"),
        ({"created_at__year": "2026"}, "Created at (year): 2026"),
        ({"children": "7", "size_of_file": "large"}, "Children: 7; Size of file: large"),
    ],
)
def test_words(filters: dict[str, Any], expected: str) -> None:
    assert describe(filters) == expected


def test_date_alone() -> None:
    assert describe({"created_at__gte": "2026-02-01"}).startswith("Created at ≥ 02/01/2026")


def test_in_another_language() -> None:
    with translation.override("de"):
        shown = describe({"status": ["running"], "created_after": "2026-02-01T12:00Z", "q": "x"})
    assert shown == "Angelegt am ≥ 01.02.2026 08:30:00; Status: läuft; Suche: x"


def test_every_filter_of_the_api_has_words() -> None:
    for name in FILTERS:
        value = {"key": "x"} if name == "metadata" else "x"
        label = describe({name: value})
        assert label.endswith("x"), label
        assert "_" not in label
