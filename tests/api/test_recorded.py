"""The exchanges recorded from the reference server."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.api.helpers import CONTRACT, assert_sound
from tests.helpers import ApiClient, make_run

EXCHANGES = json.loads((CONTRACT / "recorded.json").read_text())

# The run that the reference had for this exchange.
STORED = {"bulk/path/trailing_slash": "tsk_000179534331800954"}


def body_of(exchange: dict[str, Any]) -> bytes:
    body: str | dict[str, str] = exchange["body"]
    return base64.b64decode(body["base64"]) if isinstance(body, dict) else body.encode()


def accepted_statuses(exchange: dict[str, Any]) -> set[int]:
    """Return the statuses that may be answered: the reference's, but for its faults."""
    status: int = exchange["reference"]["status"]
    media_type = exchange["headers"].get("content-type", "")
    if status >= 500:
        is_no_text = isinstance(exchange["body"], dict)
        accepts_any_string = exchange["name"].endswith("lone_surrogate_only")
        return {400} if is_no_text else {200} if accepts_any_string else {422}
    if status == 422 and not media_type.lower().startswith("application/json"):
        return {422, 415}
    return {status}


@pytest.mark.django_db
@pytest.mark.parametrize("exchange", EXCHANGES, ids=[each["name"] for each in EXCHANGES])
def test_recorded__same_answer(exchange: dict[str, Any], secret: str) -> None:
    if exchange["name"] in STORED:
        make_run(run_id=STORED[exchange["name"]])
    headers = {
        name: value.replace("<KEY>", secret).replace("<ORG_A_KEY>", secret)
        for name, value in exchange["headers"].items()
    }
    content_type = headers.pop("content-type", "")
    response = ApiClient().generic(
        exchange["method"], exchange["path"], body_of(exchange), content_type, headers=headers
    )

    answer = assert_sound(response, *accepted_statuses(exchange))
    reference = exchange["reference"]
    if response.status_code == 422 and reference["status"] == 422:
        told = [
            {name: error[name] for name in ("type", "loc", "msg")} for error in answer["detail"]
        ]
        assert told == reference["detail"]
    elif response.status_code == 403:
        assert answer["detail"] == "Invalid credentials"  # the reference has two wordings
        assert ("x-api-key is missing" in answer.get("hint", "")) == ("x-api-key" not in headers)
    elif response.status_code == reference["status"] == 200:
        # The reference answers in the order of completion, we in that of the request.
        asked = json.loads(body_of(exchange))["run_ids"]
        expected = {
            name: [run_id for run_id in asked if run_id in run_ids]
            for name, run_ids in reference["body"].items()
        }
        assert answer == expected
    elif response.status_code == reference["status"]:
        assert answer == {"detail": reference["body"]["detail"]}


def test_recorded__complete() -> None:
    """The parametrised test is worth nothing when the file is empty."""
    assert len(EXCHANGES) >= 45
    assert {each["reference"]["status"] for each in EXCHANGES} == {200, 400, 403, 405, 422, 500}
