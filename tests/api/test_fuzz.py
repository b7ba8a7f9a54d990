"""What Hypothesis can think of."""

from __future__ import annotations

import json
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.fuzzing import CORPUS, changed_bodies, fuzz, guided_by_coverage
from tests.api.helpers import BULK, CANCELLATIONS, UNKNOWN, assert_sound, cursor
from tests.helpers import ApiClient, make_run, make_runs

pytestmark = pytest.mark.django_db

few = fuzz(30)

EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))

# Surrogates included: JSON can hold them.
any_text = st.text(st.characters(exclude_categories=()), max_size=80)

moments = st.datetimes(timezones=st.sampled_from([None, UTC, EAST, WEST]))

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(any_text | st.just("run_ids"), inner, max_size=5)
    ),
    max_leaves=20,
)


@few
@given(data=st.data())
def test_bulk__every_id_is_answered_once(data: st.DataObject, api: ApiClient) -> None:
    active = make_runs(5)
    finished = [make_run("completed"), make_run("failed")]
    stored = [run.run_id for run in active + finished]
    variants = st.sampled_from(stored).flatmap(
        lambda run_id: st.sampled_from([run_id.upper(), f"{run_id} ", run_id[:-1], f"{run_id}\0"])
    )
    asked = data.draw(st.lists(any_text | st.sampled_from(stored) | variants, max_size=100))

    answer = assert_sound(api.cancel(asked), 200)
    distinct = list(dict.fromkeys(asked))
    cancelled = {run.run_id for run in active}
    assert answer == {
        "cancelled": [run_id for run_id in distinct if run_id in cancelled],
        "failed": [run_id for run_id in distinct if run_id not in cancelled],
    }


@few
@given(body=any_json)
@pytest.mark.parametrize("path", [BULK, f"/v1/runs/{UNKNOWN}/cancel"])
def test_post__any_json(path: str, body: Any, api: ApiClient) -> None:
    assert_sound(api.send(path, json.dumps(body)), 200, 404, 422)


@few
@given(run_ids=any_json)
def test_bulk__anything_for_ids(run_ids: Any, api: ApiClient) -> None:
    valid = isinstance(run_ids, list) and all(isinstance(item, str) for item in run_ids)
    assert_sound(api.send(BULK, {"run_ids": run_ids}), 200 if valid else 422)


@few
@given(reason=any_json)
def test_single__anything_for_a_reason(reason: Any, api: ApiClient) -> None:
    run = make_run()
    response = api.send(f"/v1/runs/{run.run_id}/cancel", {"reason": reason})
    assert_sound(response, *([200, 422] if isinstance(reason, str) else [422]))


@few
@given(body=st.binary(max_size=200))
def test_post__any_bytes(body: bytes, api: ApiClient) -> None:
    assert_sound(api.send(BULK, body), 200, 400, 422)


POSTS = [
    *[BULK, CANCELLATIONS, f"/v1/runs/{UNKNOWN}/cancel"],
    *[f"{CANCELLATIONS}/{{record}}/abort", f"{CANCELLATIONS}/{{record}}/retry"],
]
ANSWERS = (200, 202, 400, 404, 409, 422)


@pytest.mark.parametrize("name", CORPUS)
def test_post__corpus(name: str, api: ApiClient) -> None:
    make_run()
    record = api.cancel(["tsk_1"])["Cancellation-Id"]
    for path in POSTS:
        assert_sound(api.send(path.format(record=record), CORPUS[name]), *ANSWERS)


@few
@given(body=changed_bodies())
@pytest.mark.parametrize("path", POSTS)
def test_post__changed_corpus(path: str, body: bytes, api: ApiClient) -> None:
    make_run(metadata={"a": 1})
    record = api.cancel(["tsk_1"])["Cancellation-Id"]
    with guided_by_coverage():
        response = api.send(path.format(record=record), body)
    assert_sound(response, *ANSWERS)


@few
@given(
    query=st.dictionaries(
        st.sampled_from(
            ["status", "type", "parent", "created_after", "created_before", "page_size", "cursor"]
        ),
        st.text(max_size=20) | moments.map(str) | st.integers(),
    )
)
def test_list__any_query(query: dict[str, Any], api: ApiClient) -> None:
    assert_sound(api.get("/v1/runs", query), 200, 422)


@few
@given(
    tokens=st.fixed_dictionaries(
        {},
        optional={
            "p": any_text | moments.map(str) | st.integers().map(str),
            "o": any_text | st.integers().map(str),
            "r": any_text | st.integers().map(str),
        },
    )
)
def test_list__any_cursor(tokens: dict[str, str], api: ApiClient) -> None:
    record = api.cancel(["tsk_1"])["Cancellation-Id"]
    for path in ("/v1/runs", "/v1/cancellations", f"/v1/cancellations/{record}/items"):
        assert_sound(api.get(path, {"cursor": cursor(**tokens)}), 200, 422)
