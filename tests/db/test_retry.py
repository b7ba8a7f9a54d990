"""Transactions that are tried again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError

from django_run_cancel.db import retry
from django_run_cancel.db.retry import MAX_TRIES, StartOver, retry_transaction

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that are waited between tries, without waiting for them."""
    seconds: list[float] = []
    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


def test_starts_over__briefly_and_at_most_so_often(pauses: list[float]) -> None:
    may_start_over = []

    def transact(restartable: bool) -> str:
        may_start_over.append(restartable)
        if restartable:
            raise StartOver
        return "done"

    assert retry_transaction(transact, "default") == "done"
    assert may_start_over == [*[True] * 7, False]
    assert len(may_start_over) == MAX_TRIES
    for pause, longest in zip(pauses, (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28), strict=True):
        assert 0 <= pause <= longest


def test_pauses__are_spread_up_to_their_bound(pauses: list[float]) -> None:
    def transact(restartable: bool) -> None:
        if restartable:
            raise StartOver

    for _ in range(500):
        retry_transaction(transact, "default")
    last = pauses[3::7]
    assert min(last) < 0.04
    assert max(last) > 0.12


def deadlock(code: str) -> OperationalError:
    error = OperationalError("undone")
    error.__cause__ = type("DriverError", (Exception,), {"sqlstate": code})()
    return error


@pytest.mark.parametrize(
    "error",
    [deadlock("40P01"), deadlock("40001"), OperationalError(1213, ""), OperationalError(1020, "")],
    ids=["PostgreSQL", "serialization", "MySQL", "MariaDB's snapshot"],
)
def test_deadlock__is_tried_again(error: OperationalError, pauses: list[float]) -> None:
    tries: list[bool] = []

    def transact(restartable: bool) -> int:
        tries.append(restartable)
        if len(tries) == 1:
            raise error
        return len(tries)

    assert retry_transaction(transact, "default") == 2
    assert len(pauses) == 1


@pytest.mark.parametrize("error", [deadlock("57014"), OperationalError(1205, ""), ValueError("x")])
def test_other_errors__are_raised_at_once(error: Any, pauses: list[float]) -> None:
    def transact(restartable: bool) -> None:
        raise error

    with pytest.raises(type(error)):
        retry_transaction(transact, "default")
    assert pauses == []
