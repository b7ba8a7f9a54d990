from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

from django_run_cancel.cancellation import (
    abort_bulk_cancellation,
    advance_bulk_cancellations,
    cancel_runs,
    chunks,
    progress_of,
    start_bulk_cancellation,
)
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.models import CancellationChunk, get_run_model
from tests.helpers import (
    IS_MYSQL,
    IS_SQLITE,
    locked_elsewhere,
    make_run,
    make_runs,
    statuses,
    unwritable,
)

RUN = get_run_model()

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _small_limits(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.RUN_CANCEL_MAX_TREE = 10
    monkeypatch.setattr(chunks, "MAX_CHILDREN", 8)


def finish(record: Any) -> None:
    while advance_bulk_cancellations(60):
        pass
    record.refresh_from_db()


def test_as_many_as_allowed() -> None:
    top = make_run()
    below = make_runs(10, parent=top)
    result = cancel_runs([top.run_id], requested_by="tests")
    assert (result.postponed, len(result.items)) == ([], 11)
    assert result.cancellation is not None
    assert result.cancellation.state == "completed"
    assert set(statuses(top, *below)) == {"cancelled"}


@pytest.mark.parametrize("shape", ["wide", "deep", "finished in between"])
def test_one_more(shape: str) -> None:
    """What was asked for is cancelled at once, and what is below by the workers."""
    top = make_run("running")
    if shape == "wide":
        below = make_runs(35, parent=top)
        below += [run for each in below[:3] for run in make_runs(15, parent=each)]
    elif shape == "deep":
        below = [make_run(parent=top)]
        while len(below) < 35:
            below.append(make_run(parent=below[-1]))
    else:
        between = make_run("completed", parent=top)
        below = make_runs(35, parent=between)
    result = cancel_runs([top.run_id], requested_by="tests", reason="too many")
    assert result.cancelled == result.postponed == [top.run_id]
    assert len(result.items) == 1
    record = result.cancellation
    assert record is not None
    assert (record.state, statuses(top)) == ("running", ["cancelled"])
    assert set(statuses(*below)) == {"queued"}
    with pytest.raises(RunCancelled):
        below[0].create_child()
    finish(record)
    assert set(statuses(*below)) == {"cancelled"}
    counts = progress_of([record])[record.pk]
    assert (counts.cancelled_count, counts.cascaded_count) == (1, len(below))
    assert (record.state, record.cascaded_count) == ("completed", len(below))
    items = record.items.filter(via="cascade", outcome="cancelled")
    assert sorted(items.values_list("run_id", flat=True)) == sorted(run.run_id for run in below)
    below[-1].refresh_from_db()
    assert below[-1].cancellation == record


def test_dry_run() -> None:
    top = make_run()
    make_runs(11, parent=top)
    result = cancel_runs([top.run_id], requested_by="tests", dry_run=True)
    assert (result.cancelled, result.postponed) == ([top.run_id], [top.run_id])
    assert len(result.items) == 1
    assert not CancellationChunk.objects.exists()


# Rows beside those that are cancelled. Reading committed rows, MariaDB scans a table of which most
# rows are listed if the list is too long; repeating reads, it scans such a table in any case.
OTHERS = {"default": 3}
if IS_MYSQL:
    OTHERS = {"READ COMMITTED": 3, "REPEATABLE READ": 5_000}


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
@pytest.mark.parametrize(("level", "count"), OTHERS.items(), ids=OTHERS)
@pytest.mark.django_db(transaction=True)
def test_more_rows_than_mariadb_looks_up__wait_for_no_other(
    level: str, count: int, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a list of 1,000 keys MariaDB may scan the table, and wait for whoever has locked a row."""
    settings.RUN_CANCEL_MAX_TREE = 10_000
    top, *others = make_run(), *make_runs(count)
    make_runs(1_500, parent=top)
    timeout = "lock_timeout = '5s'"
    if IS_MYSQL:
        timeout = "SESSION innodb_lock_wait_timeout = 5"
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SET {timeout}")
            if IS_MYSQL:
                cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")
                monkeypatch.setattr(connection, "isolation_level", level.lower())
        with locked_elsewhere(*others[:3]):
            result = cancel_runs([top.run_id], requested_by="tests")
    finally:
        connection.close()  # and with it the settings of the session
    assert len(result.items) == 1_501
    assert set(statuses(*others)) == {"queued"}


def test_cycle() -> None:
    """The search below the top ends when it comes to the top again."""
    runs = [make_run("running")]
    for number in range(14):
        runs.append(make_run("completed" if number == 3 else "queued", parent=runs[-1]))
    RUN._base_manager.filter(pk=runs[0].pk).update(parent=runs[-1])
    record = cancel_runs([runs[0].run_id], requested_by="tests").cancellation
    assert record is not None
    for _ in range(50):
        if not advance_bulk_cancellations(0):
            break
    record.refresh_from_db()
    assert (record.state, record.cascaded_count) == ("completed", 13)
    assert sorted(statuses(*runs)) == ["cancelled"] * 14 + ["completed"]


def test_finished_run_that_is_asked_for_too() -> None:
    """What is below it goes with the run above it."""
    top = make_run("running")
    between = make_run("completed", parent=top)
    below = make_runs(35, parent=between)
    record = cancel_runs([between.run_id, top.run_id], requested_by="tests").cancellation
    finish(record)
    assert set(statuses(*below)) == {"cancelled"}


def test_force_reaches_what_stops_below() -> None:
    top = make_run("running")
    below = make_runs(11, "running", parent=top)
    cancel_runs([below[0].run_id], requested_by="tests")
    result = cancel_runs([top.run_id], requested_by="tests", force=True)
    assert result.cancellation is not None
    finish(result.cancellation)
    again = result.cancellation.items.get(run_id=below[0].run_id)
    assert (again.outcome, again.via) == ("already_cancelled", "cascade")
    below[0].refresh_from_db()
    assert below[0].cancellation.items.get().force
    assert result.cancellation.cascaded_count == 10


def test_in_a_bulk_cancellation__goes_on_when_that_is_aborted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, last = make_run(), make_run()
    below = make_runs(11, parent=first)
    record = start_bulk_cancellation(
        RUN._base_manager.all(), run_ids=[first.run_id, last.run_id], requested_by="tests"
    ).cancellation
    monkeypatch.setattr(chunks._pace, "size", 1)
    chunks.advance_chunk(record.pk)
    assert abort_bulk_cancellation(record)
    finish(record)
    assert set(statuses(first, *below)) == {"cancelled"}
    assert statuses(last) == ["queued"]
    assert record.state == "aborted"
    assert progress_of([record])[record.pk].cascaded_count == 11


@pytest.mark.django_db(transaction=True)
def test_refused_row_below() -> None:
    top = make_run()
    below = make_runs(11, parent=top)
    record = cancel_runs([top.run_id], requested_by="tests").cancellation
    with unwritable(below[4]):
        finish(record)
    assert record is not None
    assert record.state == "failed"
    assert (record.cascaded_count, record.failed_count) == (10, 0)
    assert statuses(below[4]) == ["queued"]
