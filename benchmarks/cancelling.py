"""What ``cancel_runs`` costs against hand-written SQL, and how long large trees take.

Run it with ``python -m benchmarks.cancelling [ROWS]``. ``DATABASE_URL`` chooses the server; the
database is made for the occasion. The hand-written SQL locks the runs, updates them, and inserts
the record and its items into the same tables; it knows nothing of children, scopes and repetitions.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

ROUNDS = 30
COUNTS = (1, 10, 100)
TREES = {
    "10,000 children": (10_000, 1),
    "100,000 children": (100_000, 1),
    "chain of 10,000": (1, 10_000),
}

LOCK = """
SELECT id, run_id, status, backend, external_id FROM {run}
WHERE id = ANY (%s) ORDER BY id FOR NO KEY UPDATE"""
UPDATE = """
UPDATE {run} SET status = 'cancelled', finished_at = now(), cancellation_id = %s,
stop_state = 'stopping' WHERE id = ANY (%s)"""
RECORD = """
INSERT INTO {record} (cancellation_id, requested_by, user_id, source, request_id, reason, force,
request_digest, requested_at, total_count, cancelled_count, failed_count, cascaded_count)
VALUES (%s, 'floor', '', 'python', '', '', false, '', now(), %s, %s, 0, 0) RETURNING id"""
ITEMS = """
INSERT INTO {item} (cancellation_id, run_id, outcome, via, previous_status, backend, external_id,
delivery, attempts, next_attempt_at, last_error, force, handling, handling_attempts, handling_error)
SELECT %s, v.run_id, 'cancelled', 'requested', v.status, v.backend, v.external_id, 'pending', 0,
now(), '', false, 'not_needed', 0, '' FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[])
AS v (run_id, status, backend, external_id)"""


def main(rows: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from django.db import connection

    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        fill(rows)
        if connection.vendor == "postgresql":
            against_the_floor()
        trees()
    finally:
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)


def fill(rows: int) -> None:
    """Make runs that are not cancelled, so that tables and indexes have a size."""
    from django.db import connection

    from tests.helpers import make_runs

    for start in range(0, rows, 10_000):
        make_runs(min(10_000, rows - start), "completed")
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")


def against_the_floor() -> None:
    for count in COUNTS:
        ours, floor = [], []
        for _ in range(ROUNDS):
            ours.append(timed(call_service(count)))
            floor.append(timed(call_floor(count)))
        ratio = min(ours) / min(floor)
        median = statistics.median(ours) / statistics.median(floor)
        best = f"{1000 * min(ours):.2f} ms, hand-written {1000 * min(floor):.2f} ms"
        print(f"{count:>4} ids: {best}: {ratio:.2f}x (medians {median:.2f}x)", flush=True)


def call_service(count: int) -> Callable[[], object]:
    from django_run_cancel.cancellation import cancel_runs
    from tests.helpers import ids, make_runs

    run_ids = ids(make_runs(count, "running"))
    return lambda: cancel_runs(run_ids, requested_by="benchmark")


def call_floor(count: int) -> Callable[[], object]:
    from django.db import connection

    from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
    from tests.helpers import make_runs

    pks = sorted(run.pk for run in make_runs(count, "running"))
    tables = {
        "run": get_run_model()._meta.db_table,
        "record": Cancellation._meta.db_table,
        "item": CancellationItem._meta.db_table,
    }
    lock, update, record, items = (each.format(**tables) for each in (LOCK, UPDATE, RECORD, ITEMS))

    def run() -> None:
        with connection.connection.cursor() as cursor:
            cursor.execute("BEGIN")
            found = cursor.execute(lock, [pks]).fetchall()
            name = f"can_{uuid.uuid4().hex}"
            (key,) = cursor.execute(record, [name, count, count]).fetchone()
            cursor.execute(update, [key, pks])
            columns: list[Any] = [list(column) for column in zip(*found, strict=True)]
            cursor.execute(items, [key, *columns[1:]])
            cursor.execute("COMMIT")

    return run


def trees() -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from django_run_cancel.cancellation import cancel_runs
    from django_run_cancel.models import get_run_model
    from tests.helpers import make_run

    model = get_run_model()
    for name, (width, depth) in TREES.items():
        top = make_run("running")
        if depth == 1:
            runs = [model(parent=top, status="running") for _ in range(width)]
            model._base_manager.bulk_create(runs, batch_size=5_000)
        else:
            above = top
            for _ in range(depth):
                above = model._base_manager.create(parent=above, status="running")
        with CaptureQueriesContext(connection) as captured:
            took = timed(lambda top=top: cancel_runs([top.run_id], requested_by="benchmark"))  # type: ignore[misc]
        left = model._base_manager.filter(status="running").count()
        print(f"{name}: {took:.2f} s, {len(captured)} statements, {left} still running", flush=True)


def timed(call: Callable[[], object]) -> float:
    gc.collect()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
