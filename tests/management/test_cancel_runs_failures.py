"""``manage.py cancel_runs`` when rows are refused, the database fails, or somebody else aborts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import OperationalError, connection

from django_run_cancel.cancellation import (
    abort_bulk_cancellation,
    advance_bulk_cancellations,
    chunks,
)
from django_run_cancel.models import Cancellation
from tests.helpers import ids, make_run, make_runs, statuses, unwritable
from tests.management.helpers import CANCELLING, RECORD, WORKERS, before_each, failing, run

pytestmark = pytest.mark.usefixtures("fixed_pace")

RETRY = "When the cause is gone, run: manage.py retry_deliveries --cancellation can_…"


@pytest.mark.django_db(transaction=True)
class TestRefusedRows:
    def test_run_asked_for(self) -> None:
        runs = make_runs(3)
        with unwritable(runs[1]):
            status, out, message = failing("--status", "queued", "--yes")
            shown = json.loads(failing(*ids(runs), "--yes", "--json")[1])
        assert status == 1
        assert message == f"1 of 3 runs is not cancelled. {RETRY}"
        assert out == f"{runs[1].run_id}: refused\n2 runs are cancelled.\n{RECORD}"
        assert statuses(*runs) == ["cancelled", "queued", "cancelled"]
        assert shown["failed"] == {runs[1].run_id: "refused"}
        assert shown["state"] == "failed"

    def test_run_below(self, settings: Any) -> None:
        settings.RUN_CANCEL_MAX_TREE = 0  # what is below is cancelled afterwards
        job = make_run("running")
        children = [job.create_child() for _ in range(3)]
        with unwritable(children[1]):
            status, out, message = failing(job.run_id, "--yes")
        assert out == (
            f"1 run is cancelled, and 2 below it.\n1 run below it could not be changed.\n{RECORD}"
        )
        assert status == 1
        assert message == f"1 run below could not be changed. {RETRY}"


@pytest.mark.django_db(transaction=True)
class TestDatabaseThatGivesUp:
    def dying(self, after: int) -> Any:
        """Let the database be away after so many transactions."""
        begun: list[str] = []

        def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if CANCELLING in sql:
                begun.append(sql)
            if len(begun) > after:
                raise OperationalError("it is away")
            return execute(sql, params, many, context)

        return connection.execute_wrapper(fail)

    def test_says_who_goes_on(self) -> None:
        runs = make_runs(250)
        with self.dying(1):
            status, out, message = failing(*ids(runs), "--yes")
        assert (status, out) == (1, RECORD)
        assert message == (f"The database failed: it is away: can_… is left to {WORKERS}.")
        assert statuses(*runs).count("cancelled") == 100
        advance_bulk_cancellations(10)
        assert statuses(*runs).count("cancelled") == 250

    def test_json(self) -> None:
        make_runs(250)
        with self.dying(1):
            _, out, _ = failing("--status", "queued", "--yes", "--json")
        shown = json.loads(out)
        assert (shown["total"], shown["cancelled_count"]) == (250, None)
        assert shown["cancellation"] == Cancellation.objects.get().cancellation_id

    @pytest.mark.parametrize("statement", ["COUNT(*)", "INSERT INTO"])
    def test_before_anything_is_recorded(self, statement: str) -> None:
        runs = make_runs(3)

        def fail(number: int) -> None:
            raise OperationalError("it is away")

        with before_each(statement, fail):
            status, out, message = failing("--status", "queued", "--yes")
        assert (status, out) == (1, "")
        assert message.startswith("The database failed: it is away")
        assert statuses(*runs) == ["queued"] * 3
        assert not Cancellation.objects.exists()

    def test_for_a_moment__goes_on(self, caplog: pytest.LogCaptureFixture) -> None:
        make_runs(3)

        def fail(number: int) -> None:
            if number == 1:
                raise OperationalError("it is away")

        with before_each(CANCELLING, fail):
            assert run("--status", "queued", "--yes").startswith("3 runs are cancelled.")
        assert "cannot go on: " in caplog.text


@pytest.mark.django_db
def test_aborted_by_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first transaction and the second."""
    runs = make_runs(250)
    real = chunks.advance_chunk

    def advance_chunk(pk: int) -> int:
        if "cancelled" in statuses(*runs):
            abort_bulk_cancellation(Cancellation.objects.get())
        return real(pk)

    monkeypatch.setattr(chunks, "advance_chunk", advance_chunk)
    status, out, message = failing(*ids(runs), "--yes")
    assert (status, out) == (1, f"100 runs are cancelled.\n{RECORD}")
    assert message == "Aborted: 150 of 250 runs stay as they are."
    assert statuses(*runs).count("cancelled") == 100
