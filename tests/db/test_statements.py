"""Parameters of SQL statements."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from django_run_cancel.db.statements import array_parameter, fetch
from django_run_cancel.states import Outcome
from tests.helpers import IS_POSTGRESQL

TEXTS = [
    "",
    "NULL",
    "a,b",
    "{}",
    '"',
    "\\",
    '\\"',
    "a\nb",
    " x ",
    "é𝄞",
    "%s",
    "'",
    Outcome.CANCELLED,
]
NUMBERS = [0, -1, 2**63 - 1]
KEYS = [UUID(int=1), UUID(int=2)]
MIXED = ["a", None]


def test_array_parameter__texts_of_literals() -> None:
    assert array_parameter(NUMBERS) == "{0,-1,9223372036854775807}"
    assert array_parameter(["a", 'b"', "c\\"]) == r'{"a","b\"","c\\"}'
    assert array_parameter([]) == "{}"


@pytest.mark.parametrize("values", [KEYS, MIXED, [True, False], [1, "a"]])
def test_array_parameter__lists_for_the_driver(values: list[Any]) -> None:
    assert array_parameter(values) == values
    assert isinstance(array_parameter(values), list)


@pytest.mark.django_db
@pytest.mark.skipif(not IS_POSTGRESQL, reason="the others have no arrays")
@pytest.mark.parametrize(
    ("of_type", "values"),
    [("text", TEXTS), ("bigint", NUMBERS), ("uuid", KEYS), ("text", MIXED), ("text", [])],
)
def test_array_parameter__is_read_as_it_was(of_type: str, values: list[Any]) -> None:
    rows = fetch("default", f"SELECT unnest(%s::{of_type}[])", [array_parameter(values)])
    assert [value for (value,) in rows] == values
