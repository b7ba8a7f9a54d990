from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from django_run_cancel.management.arguments import age_or_time, key_and_value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", timedelta(hours=2)),
        ("30m", timedelta(minutes=30)),
        ("7d", timedelta(days=7)),
        ("2026-11-28T15:00Z", datetime(2026, 11, 28, 15, tzinfo=UTC)),
        ("2026-11-28 15:00:30.5+02:00", datetime(2026, 11, 28, 13, 0, 30, 500_000, tzinfo=UTC)),
        # In the time zone of the settings, three and a half hours behind.
        ("2026-11-28T15:00", datetime(2026, 11, 28, 18, 30, tzinfo=UTC)),
        ("2026-11-28", datetime(2026, 11, 28, 3, 30, tzinfo=UTC)),
    ],
)
def test_age_or_time(text: str, expected: Any) -> None:
    assert age_or_time(text) == expected


@pytest.mark.parametrize("text", ["0h", "2w", "5s"])
def test_no_age(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="not a duration such as 90d, 12h or 30m"):
        age_or_time(text)


@pytest.mark.parametrize(
    "text", ["", "2", "soon", "-2h", "2026-02-31", "0001-01-01T00:00+14:00", "\udcff"]
)
def test_neither_age_nor_time(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="neither an age such as 2h, 30m or 7d, nor a time"):
        age_or_time(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop=acme", ("shop", "acme")),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
        ("page=7", ("page", 7)),
        ('page="7"', ("page", "7")),
        ("ratio=0.5", ("ratio", 0.5)),
        ("done=true", ("done", True)),
        ("owner=null", ("owner", None)),
        # No database can hold these as JSON: they are what was typed.
        ("x=NaN", ("x", "NaN")),
        ("x=1e999", ("x", "1e999")),
        ('x="\\u0000"', ("x", '"\\u0000"')),
        ("x=[1]", ("x", "[1]")),
    ],
)
def test_key_and_value(text: str, expected: Any) -> None:
    assert key_and_value(text) == expected


@pytest.mark.parametrize("text", ["0=1", "-1=x", 'a"b=1', "-a=1"])
def test_key_that_cannot_be_looked_for(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="cannot be looked for"):
        key_and_value(text)


@pytest.mark.parametrize("text", ["", "a", "=b", "a=\0", "a=\udcff", "a=" + "x" * 1_000])
def test_no_key_and_value(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not of the form KEY=VALUE"):
        key_and_value(text)
