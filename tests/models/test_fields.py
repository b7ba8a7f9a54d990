"""Lookups of the fields of the models."""

from __future__ import annotations

from typing import Any

import pytest
from django.db.models import F

from django_run_cancel.models import get_run_model
from tests.helpers import IS_POSTGRESQL, make_run

pytestmark = pytest.mark.django_db


def test_in__texts_and_expressions() -> None:
    runs: Any = get_run_model()._base_manager
    same, other, third = make_run(run_id="a", title="a"), make_run(run_id="b"), make_run()
    assert set(runs.filter(run_id__in=["a", "b", "unknown"])) == {same, other}
    assert set(runs.filter(run_id__in=[F("title"), "b"])) == {same, other}
    assert set(runs.filter(run_id__in=runs.filter(title="a").values("run_id"))) == {same}
    assert not runs.filter(run_id__in=[]).exists()
    assert set(runs.exclude(run_id__in=["a", "b"])) == {third}


@pytest.mark.skipif(not IS_POSTGRESQL, reason="the others have no arrays")
def test_in__texts_are_one_parameter_on_postgresql() -> None:
    runs: Any = get_run_model()._base_manager
    sql, params = runs.filter(run_id__in=["a", "b"]).query.sql_with_params()
    assert "= ANY (%s::text[])" in sql
    assert params == ('{"a","b"}',)
    sql, _ = runs.filter(run_id__in=[F("title"), "b"]).query.sql_with_params()
    assert "ANY" not in sql
