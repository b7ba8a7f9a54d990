"""What ``cancel_runs`` costs against hand-written SQL, for 1, 10 and 100 ids.

Run it with ``python -m benchmarks.cancelling [--rows N] [--save]``. ``DATABASE_URL`` chooses the
server; the database is made for the occasion. Both ways take turns, so that whatever else the
machine does slows both.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

from benchmarks.figures import Figures, arguments, own_database

COUNTS = (1, 10, 100)


def main() -> None:
    given = arguments(__doc__, rows=20_000, rounds=100)
    with own_database():
        from django.db import connection

        figures = Figures(
            f"cancelling_{connection.vendor}",
            *("ids", "cancel_runs: least ms", "by hand: least ms", "times by hand"),
            *("cancel_runs: median ms", "by hand: median ms", "medians, times by hand"),
            module="cancelling",
        )
        fill(given.rows)
        for count in COUNTS:
            ours, floor = [], []
            for _ in range(given.rounds):
                ours.append(timed(call_service(count)))
                floor.append(timed(call_floor(count)))
            least, medians = compared(ours, floor, min), compared(ours, floor, statistics.median)
            figures.add(count, *least, *medians)
        if given.save:
            figures.save()


def fill(rows: int) -> None:
    """Make runs that are not cancelled, so that tables and indexes have a size."""
    from django.db import connection

    from tests.helpers import make_runs

    for start in range(0, rows, 10_000):
        make_runs(min(10_000, rows - start), "completed")
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")


def compared(
    ours: list[float], floor: list[float], value: Callable[[list[float]], float]
) -> tuple[float, float, float]:
    """Return a value of both in milliseconds, and the first as times the second."""
    mine, theirs = value(ours), value(floor)
    return round(1000 * mine, 3), round(1000 * theirs, 3), round(mine / theirs, 2)


def call_service(count: int) -> Callable[[], object]:
    from django_run_cancel.cancellation import cancel_runs
    from tests.helpers import ids, make_runs

    run_ids = ids(make_runs(count, "running"))
    return lambda: cancel_runs(run_ids, requested_by="benchmark")


def call_floor(count: int) -> Callable[[], object]:
    from benchmarks.floor import cancelling_by_hand
    from tests.helpers import make_runs

    return cancelling_by_hand(sorted(run.pk for run in make_runs(count, "running")))


def timed(call: Callable[[], object]) -> float:
    gc.collect()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
