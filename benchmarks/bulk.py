"""How fast a bulk cancellation is, against hand-written SQL that cancels in chunks.

Run it with ``python -m benchmarks.bulk [--runs N] [--save]``: as many active runs are cancelled,
among as many completed ones. ``DATABASE_URL`` chooses the database; the runs live in a test
database. Both ways write the same columns of runs and items. Meanwhile another process cancels
single runs, as clients do, except on SQLite, which has one writer at a time.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.figures import Figures, arguments, own_database

CHUNK = 1_000
BATCH = 10_000
COPY = "benchmark_copy"

FILL = """
INSERT INTO {run} (run_id, run_type, status, tenant, title, metadata, backend, external_id,
created_at, failure_reason, stop_state)
SELECT 'tsk_' || lpad(number::text, 32, '0'), 'task', CASE WHEN number %% 2 = 0 THEN 'queued'
ELSE 'completed' END, '', 'project.tasks.crawl', '{{}}', 'celery', 'job-' || number, now(), '', ''
FROM generate_series(0, %s) number"""
"""What ``make_runs()`` does, for PostgreSQL in a tenth of the time."""
QUIET_SECONDS = 5.0


def main() -> None:
    given = arguments(__doc__, runs=1_000_000)
    count = given.runs
    with own_database():
        from django.db import connection

        figures = Figures(
            f"bulk_{connection.vendor}",
            *("cancelled runs", "runs a second", "by hand", "part of that", "preview s"),
            *("selection s", "longest transaction ms", "MB more", "p95 of others before, ms"),
            "p95 of others meanwhile, ms",
            module="bulk",
        )
        fill(count)
        by_hand = measure_by_hand(count)
        print(f"hand-written SQL: {by_hand:,.0f} runs a second", flush=True)
        fill(count)
        ours, *details = measure_ours(count)
        print(f"bulk cancellation: {ours:,.0f} runs a second", flush=True)
        if connection.vendor == "sqlite":
            others = ("-", "-")
        else:
            fill(count)
            others = measure_others(count)
        part = f"{ours / by_hand:.0%}"
        figures.add(count, round(ours), round(by_hand), part, *details, *others)
        if given.save:
            figures.save()


def fill(count: int) -> None:
    """Begin with a table of active and completed runs, in turn; a copy of the first one."""
    from django.db import connection

    from django_run_cancel.models import Cancellation, get_run_model

    rows = get_run_model()._base_manager
    run, *others = (connection.ops.quote_name(name) for name in tables_of(connection))
    with connection.cursor() as cursor:
        if COPY not in connection.introspection.table_names():
            make_runs(count)
            cursor.execute(f"CREATE TABLE {COPY} AS SELECT * FROM {run}")
        else:
            if connection.vendor == "postgresql":
                cursor.execute(f"TRUNCATE {', '.join([run, *others])} CASCADE")
            else:
                rows.all()._raw_delete(connection.alias)
                Cancellation.objects.all().delete()
            cursor.execute(f"INSERT INTO {run} SELECT * FROM {COPY}")
        if connection.vendor == "postgresql":
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")


def make_runs(count: int) -> None:
    from django.db import connection

    from django_run_cancel.models import get_run_model

    rows = get_run_model()._base_manager
    if connection.vendor == "postgresql":
        table = connection.ops.quote_name(rows.model._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(FILL.format(run=table), [2 * count - 1])
        return
    common = {"backend": "celery", "title": "project.tasks.crawl"}
    for start in range(0, 2 * count, BATCH):
        rows.bulk_create(
            rows.model(
                run_id=f"tsk_{number:032}",
                external_id=f"job-{number}",
                status="completed" if number % 2 else "queued",
                **common,
            )
            for number in range(start, min(start + BATCH, 2 * count))
        )


def tables_of(connection: Any) -> list[str]:
    from django_run_cancel import models

    return [
        model._meta.db_table
        for model in (
            *(models.get_run_model(), models.Cancellation),
            *(models.CancellationItem, models.CancellationChunk),
        )
    ]


def measure_by_hand(count: int) -> float:
    from django.db import connection, transaction

    from django_run_cancel.models import Cancellation

    record = Cancellation.objects.create(requested_by="benchmark", source="python")
    run, _, item, _ = (connection.ops.quote_name(name) for name in tables_of(connection))
    active = "status IN ('created', 'queued', 'running', 'paused')"
    now = "CURRENT_TIMESTAMP"
    last, done, started = 0, 0, time.perf_counter()
    while True:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                f"SELECT MAX(id), COUNT(*) FROM (SELECT id FROM {run} WHERE {active} AND id > %s"
                f" ORDER BY id LIMIT {CHUNK}) part",
                [last],
            )
            until, found = cursor.fetchone()
            if not found:
                break
            where = f"WHERE {active} AND id > %s AND id <= %s"
            cursor.execute(
                f"INSERT INTO {item} (cancellation_id, run_id, outcome, via, previous_status,"
                " backend, external_id, delivery, attempts, next_attempt_at, last_error,"
                f" {connection.ops.quote_name('force')},"
                " handling, handling_attempts, handling_error)"
                " SELECT %s, run_id, 'cancelled', 'requested', status, backend, external_id,"
                f" 'pending', 0, {now}, '', false, 'not_needed', 0, '' FROM {run} {where}",
                [record.pk, last, until],
            )
            cursor.execute(
                f"UPDATE {run} SET status = 'cancelled', finished_at = {now}, cancellation_id = %s,"
                f" stop_state = 'never_started', stopped_at = {now} {where}",
                [record.pk, last, until],
            )
        last, done = until, done + found
    assert done == count
    return count / (time.perf_counter() - started)


def measure_ours(count: int) -> tuple[float, ...]:
    """Return the runs a second, and the other figures of ``main()`` about this process."""
    from django_run_cancel.cancellation import (
        preview_bulk_cancellation,
        start_bulk_cancellation,
    )
    from django_run_cancel.cancellation.chunks import advance_chunk
    from django_run_cancel.models import get_run_model

    runs = get_run_model()._base_manager.filter(status="queued")
    started = time.perf_counter()
    preview_bulk_cancellation(runs, requested_by="benchmark")
    previewed = time.perf_counter()
    record = start_bulk_cancellation(runs, requested_by="benchmark").cancellation
    selected = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    longest = 0.0
    while True:
        begun = time.perf_counter()
        if not advance_chunk(record.pk):
            break
        longest = max(longest, time.perf_counter() - begun)
    seconds = time.perf_counter() - previewed
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    record.refresh_from_db()
    assert (record.state, record.cancelled_count) == ("completed", count)
    return (
        *(count / seconds, round(previewed - started, 3), round(selected - previewed, 2)),
        *(round(longest * 1_000), round(more / 1_024)),
    )


def measure_others(count: int) -> tuple[Any, ...]:
    """Return how long clients wait that cancel single runs, before and meanwhile."""
    from django_run_cancel.cancellation import advance_bulk_cancellations, start_bulk_cancellation
    from django_run_cancel.models import get_run_model

    command = [sys.executable, "-m", "benchmarks.bulk", "client"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        time.sleep(QUIET_SECONDS)
        runs = get_run_model()._base_manager.filter(status="queued")
        start_bulk_cancellation(runs, requested_by="benchmark")
        begun = time.time()
        while advance_bulk_cancellations(1):
            pass
        ended = time.time()
        client.terminate()
        assert client.stdout is not None
        lines = [line for line in client.stdout if line.endswith("\n")]  # the last may be cut off
    waits = [tuple(map(float, line.split())) for line in lines]
    quiet = [wait for at, wait in waits if at < begun]
    busy = [wait for at, wait in waits if begun < at < ended]
    before, meanwhile = (statistics.quantiles(each, n=20)[-1] for each in (quiet, busy))
    return round(before * 1_000, 1), round(meanwhile * 1_000, 1)


def client() -> None:
    """Cancel single runs, and print when each was asked for and how long it took."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    import django

    django.setup()
    from django_run_cancel.cancellation import cancel_runs
    from django_run_cancel.models import get_run_model

    while True:
        run = get_run_model()._base_manager.create(status="running", run_type="single")
        asked, started = time.time(), time.perf_counter()
        cancel_runs([run.run_id], requested_by="client")
        print(asked, time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["client"]:
        client()
    else:
        main()
