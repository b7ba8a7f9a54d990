"""What ``cancel_runs`` costs against hand-written SQL, and how long large trees take.

Run it with ``python -m benchmarks.cancelling [ROWS]``. ``DATABASE_URL`` chooses the server; the
database is made for the occasion.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable

ROUNDS = 100
COUNTS = (1, 10, 100)
TREES = {
    "10,000 children": (10_000, 1),
    "100,000 children": (100_000, 1),
    "chain of 10,000": (1, 10_000),
}


def main(rows: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    import django

    django.setup()
    from django.db import connection

    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        fill(rows)
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
    from django.db import connection

    print(f"cancel_runs on {connection.vendor}, and the same by hand: least ms, and medians")
    for count in COUNTS:
        ours, floor = [], []
        for _ in range(ROUNDS):
            ours.append(timed(call_service(count)))
            floor.append(timed(call_floor(count)))
        print(f"{count:>4} ids: {compared(ours, floor, min)}, ", end="")
        print(f"medians {compared(ours, floor, statistics.median)}", flush=True)


def compared(ours: list[float], floor: list[float], value: Callable[[list[float]], float]) -> str:
    mine, theirs = value(ours), value(floor)
    return f"{1000 * mine:6.2f} / {1000 * theirs:6.2f} = {mine / theirs:.2f}x"


def call_service(count: int) -> Callable[[], object]:
    from django_run_cancel.cancellation import cancel_runs
    from tests.helpers import ids, make_runs

    run_ids = ids(make_runs(count, "running"))
    return lambda: cancel_runs(run_ids, requested_by="benchmark")


def call_floor(count: int) -> Callable[[], object]:
    from benchmarks.floor import cancelling_by_hand
    from tests.helpers import make_runs

    return cancelling_by_hand(sorted(run.pk for run in make_runs(count, "running")))


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
