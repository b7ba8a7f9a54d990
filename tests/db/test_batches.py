from __future__ import annotations

from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.db.batches import batches
from django_run_cancel.models import get_run_model
from tests.helpers import make_runs

pytestmark = pytest.mark.django_db


def keys_in_order(*fields: str) -> list[Any]:
    return list(get_run_model()._base_manager.order_by(*fields).values_list("pk", flat=True))


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_every_row_once_and_in_order(size: int) -> None:
    now = timezone.now()
    make_runs(4, created_at=now)
    make_runs(3, created_at=now - timedelta(days=1))
    rows = get_run_model()._base_manager.all()
    found = list(batches(rows, "created_at", size=size))
    assert [len(batch) for batch in found][:-1] == [size] * (len(found) - 1)
    assert [*chain.from_iterable(found)] == keys_in_order("created_at", "pk")
    backwards = batches(rows, "created_at", size=size, descending=True)
    assert [*chain.from_iterable(backwards)] == keys_in_order("-created_at", "-pk")
    key = rows.model._meta.pk.name
    assert [*chain.from_iterable(batches(rows, key, size=size))] == keys_in_order("pk")


def test_rows_that_change_meanwhile_come_once() -> None:
    make_runs(5)
    rows = get_run_model()._base_manager.filter(status="queued")
    seen = []
    for batch in batches(rows, "created_at", size=2):
        seen += batch
        rows.filter(pk__in=batch[:1]).update(status="failed")
    assert seen == keys_in_order("created_at", "pk")


def test_none() -> None:
    assert list(batches(get_run_model()._base_manager.none(), "created_at")) == []
