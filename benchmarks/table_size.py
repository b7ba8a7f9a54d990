"""What a cancellation of 1 and of 100 runs costs in tables of 10 thousand to 10 million runs.

Run it with ``python -m benchmarks.table_size [--largest N] [--rounds N] [--save]``.
``DATABASE_URL`` names a server of PostgreSQL, which fills tables quickly; the database is made for
the occasion. The cancelled runs are anywhere in the table.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

from benchmarks.figures import Figures, arguments, own_database

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
COUNTS = (1, 100)

FILL = """
INSERT INTO {run} (run_id, run_type, status, tenant, title, metadata, backend, external_id,
created_at, started_at, finished_at, failure_reason, stop_state)
SELECT 'tsk_filler_' || number, 'task', CASE WHEN number %% 10 = 0 THEN 'running' ELSE 'completed'
END, 'tenant' || number %% 100, 'project.tasks.crawl', '{{}}', 'celery', 'job-' || number,
now() - (%s - number) * interval '1 second', now(),
CASE WHEN number %% 10 = 0 THEN NULL ELSE now() END, '', ''
FROM generate_series(%s, %s) number"""
"""One run in ten is active."""


def main() -> None:
    given = arguments(__doc__, largest=1_000_000, rounds=50)
    figures = Figures(
        "table_size",
        *("runs in the table", "ids", "least ms", "median ms"),
        *("times 10,000 runs", "least ms a run"),
    )
    with own_database():
        from django.db import connection

        if connection.vendor != "postgresql":
            sys.exit("DATABASE_URL must name a database of PostgreSQL.")
        first: dict[int, float] = {}
        filled = 0
        for size in (each for each in SIZES if each <= given.largest):
            fill(filled + 1, size)
            filled = size
            for count in COUNTS:
                seconds = measure(size, count, given.rounds)
                least = first.setdefault(count, min(seconds))
                figures.add(
                    *(size, count, round(1_000 * min(seconds), 2)),
                    round(1_000 * statistics.median(seconds), 2),
                    *(round(min(seconds) / least, 2), round(1_000 * min(seconds) / count, 3)),
                )
        if given.save:
            figures.save()


def fill(first: int, last: int) -> None:
    """Add runs with these numbers."""
    from django.db import connection

    from django_run_cancel.models import get_run_model

    table = connection.ops.quote_name(get_run_model()._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(FILL.format(run=table), [last, first, last])
        cursor.execute("VACUUM ANALYZE")


def measure(size: int, count: int, rounds: int) -> list[float]:
    """Return the seconds of cancellations of so many active runs, each of other ones."""
    from django_run_cancel.cancellation import cancel_runs
    from django_run_cancel.models import get_run_model

    rows = get_run_model()._base_manager
    active = list(rows.filter(status="running").values_list("run_id", flat=True))
    chosen = random.Random(size).sample(active, min(len(active), count * rounds))
    seconds = []
    for start in range(0, len(chosen) - count + 1, count):
        begin = time.perf_counter()
        result = cancel_runs(chosen[start : start + count], requested_by="benchmark")
        seconds.append(time.perf_counter() - begin)
        assert len(result.cancelled) == count
    return seconds


if __name__ == "__main__":
    main()
