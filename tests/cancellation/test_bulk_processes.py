from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections

from django_run_cancel.cancellation import (
    advance_bulk_cancellations,
    chunks,
    progress_of,
    retry_bulk_cancellation,
    start_bulk_cancellation,
)
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from django_run_cancel.signals import runs_cancelled
from django_run_cancel.testing import wait_until
from tests.helpers import IS_SQLITE, make_run, make_runs

RUN = get_run_model()
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.django_db(transaction=True)


def assert_done_once(record: Any, count: int) -> None:
    record.refresh_from_db()
    assert record.state == "completed"
    assert progress_of([record])[record.pk].cancelled_count == count
    items = CancellationItem.objects.filter(cancellation=record, outcome="cancelled")
    assert items.count() == items.values("run_id").distinct().count() == count
    assert RUN._base_manager.filter(status="cancelled", cancellation=record).count() == count


@pytest.mark.skipif(IS_SQLITE, reason="In SQLite, nobody else writes meanwhile.")
def test_retried_while_its_end_is_being_written() -> None:
    make_run()
    record = start_bulk_cancellation(RUN._base_manager.all(), requested_by="tests").cancellation
    CancellationChunk.objects.update(state="failed", failed_count=1)
    retried: list[int] = []

    def retry() -> None:
        retried.append(retry_bulk_cancellation(record))
        connection.close()

    def execute(execute: Any, sql: str, *args: Any) -> Any:
        if "FOR UPDATE" in sql and Cancellation._meta.db_table in sql and not retried:
            thread = threading.Thread(target=retry)
            thread.start()
            thread.join(60)
        return execute(sql, *args)

    with connection.execute_wrapper(execute):
        chunks._settle(record.pk, "default")
    assert retried == [1]
    record.refresh_from_db()
    assert record.state == "pending"
    while advance_bulk_cancellations(60):
        pass
    assert_done_once(record, 1)


def test_workers_share_the_load() -> None:
    make_runs(5_000)
    record = start_bulk_cancellation(RUN._base_manager.all(), requested_by="tests").cancellation
    by: dict[int | None, int] = {}
    lock = threading.Lock()
    line = threading.Barrier(3, timeout=120)

    def count(run_ids: list[str], **kwargs: Any) -> None:
        with lock:
            name = threading.current_thread().ident
            by[name] = by.get(name, 0) + len(run_ids)

    def work() -> None:
        try:
            connection.ensure_connection()
            line.wait()
            while CancellationChunk.objects.filter(state="pending").exists():
                advance_bulk_cancellations(60)
        finally:
            connections.close_all()

    runs_cancelled.connect(count)
    threads = [threading.Thread(target=work) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
    finally:
        for thread in threads:
            thread.join()
        runs_cancelled.disconnect(count)
    advance_bulk_cancellations(60)
    assert_done_once(record, 5_000)
    assert sum(by.values()) == 5_000
    if not IS_SQLITE:  # which has one writer at a time
        assert len(by) > 1


def test_killed_workers() -> None:
    """Others go on where the last transaction was committed."""
    make_runs(6_000)
    record = start_bulk_cancellation(RUN._base_manager.all(), requested_by="tests").cancellation
    names = {alias: str(connections[alias].settings_dict["NAME"]) for alias in connections}
    environment = {
        **os.environ,
        "RUN_CANCEL_HOST_SETTINGS": os.environ["DJANGO_SETTINGS_MODULE"],
        "RUN_CANCEL_TEST_DATABASES": json.dumps(names),
        "DJANGO_SETTINGS_MODULE": "django_run_cancel.testing.worker_settings",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "django", "deliver_cancellations"]
    kills = 0
    while CancellationChunk.objects.filter(state="pending").exists() and kills < 3:
        before = progress_of([record])[record.pk].processed_count

        def has_advanced(before: int = before) -> bool:
            return progress_of([record])[record.pk].processed_count > before

        with subprocess.Popen(command, cwd=ROOT, env=environment) as worker:
            try:
                wait_until(has_advanced, "the worker to advance")
            finally:
                worker.kill()
        kills += 1
        connection.close()
        record.refresh_from_db()
    while advance_bulk_cancellations(60):
        pass
    assert kills
    assert_done_once(record, 6_000)
