"""Bodies that are no JSON: the answer tells the place, as the contract has it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from django_run_cancel.api import parsers
from tests.api.helpers import BULK, assert_sound
from tests.helpers import ApiClient

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("body", "position", "problem"),
    [
        ("[" * 1_000_000, 0, "Nested too deeply"),
        ('{"run_ids": [] /* all */}', 15, "Expecting ',' delimiter"),
    ],
    ids=["deep", "a comment"],
)
def test_place(body: str, position: int, problem: str, api: ApiClient) -> None:
    (error,) = assert_sound(api.send(BULK, body), 422)["detail"]
    assert (error["type"], error["loc"]) == ("json_invalid", ["body", position])
    assert error["ctx"] == {"error": problem}


@pytest.mark.parametrize("text", ['{"run_ids": [],}', '{"run_ids": [], } ', '{"run_ids": [] , \n}'])
def test_place__trailing_comma(text: str, api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since 3.13 Python tells that of the comma, and the contract that of what follows it."""

    def loads(*args: Any, **kwargs: Any) -> Any:
        problem = "Illegal trailing comma before end of object"
        raise json.JSONDecodeError(problem, text, text.index(","))

    fake = SimpleNamespace(loads=loads, JSONDecodeError=json.JSONDecodeError)
    monkeypatch.setattr(parsers, "json", fake)
    (error,) = assert_sound(api.send(BULK, text), 422)["detail"]
    assert error["loc"] == ["body", text.index("}")]
