"""How many bytes runs and records of cancellations take on PostgreSQL.

Run it with ``python -m benchmarks.rows [ROWS]``. ``DATABASE_URL`` names the server; the database is
made for the occasion. Runs are those of Celery tasks with ``RUN_CANCEL_BACKENDS``: inserted,
started and completed, a batch at a time. One in ten is cancelled, with a request of its own.
"""

from __future__ import annotations

import os
import sys
import uuid

RATES = {"One a minute": 1 / 60, "One a second": 1.0, "20 a second": 20.0}
SECONDS_A_MONTH = 30 * 24 * 60 * 60
BATCH = 1_000


def main(rows: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    import django

    django.setup()
    from django.db import connection

    if connection.vendor != "postgresql":
        sys.exit("DATABASE_URL must name a database of PostgreSQL.")
    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        for _ in range(rows // BATCH):
            live(BATCH)
        report()
    finally:
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)


def live(count: int) -> None:
    """Let runs begin and end."""
    from django.db import connection
    from django.utils import timezone

    from django_run_cancel.cancellation import cancel_runs
    from django_run_cancel.models import get_run_model

    rows = get_run_model()._base_manager
    ids = [str(uuid.uuid4()) for _ in range(count)]
    named = {"title": "project.jobs.tasks.crawl", "backend": "celery", "status": "queued"}
    now = timezone.now()
    rows.bulk_create([rows.model(run_id=i, external_id=i, queued_at=now, **named) for i in ids])
    cancelled, completed = ids[: count // 10], ids[count // 10 :]
    started = {"status": "running", "started_at": now, "heartbeat_at": now}
    rows.filter(run_id__in=completed).update(execution_id=uuid.uuid4(), **started)
    rows.filter(run_id__in=completed).update(status="completed", finished_at=now)
    for run_id in cancelled:
        cancel_runs([run_id], requested_by="benchmark", reason="Not needed any more")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")  # as autovacuum does between


def report() -> None:
    from django.db import connection

    from django_run_cancel.models import Cancellation, CancellationItem, get_run_model

    bytes_each = {}
    with connection.cursor() as cursor:
        for model in (get_run_model(), Cancellation, CancellationItem):
            cursor.execute("SELECT pg_total_relation_size(%s)", [model._meta.db_table])
            bytes_each[model] = cursor.fetchone()[0] / model._base_manager.count()
            print(f"{model.__name__}: {bytes_each[model] / 1000:.2f} kB a row, with indexes")
    for name, rate in RATES.items():
        rows = rate * SECONDS_A_MONTH
        size = rows * bytes_each[get_run_model()] / 1e9
        print(f"{name}: {rows:,.0f} runs and {size:.2f} GB a month")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
