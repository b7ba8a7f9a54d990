"""What tracking costs: empty tasks a second, published and run, without and with the one line.

Run it with ``python -m benchmarks.tracking [TASKS]``, with ``DATABASE_URL`` of PostgreSQL and
``REDIS_URL``. The tasks are Celery's, and run by a real worker with a process for each core. First
all are published, while no worker is there; then the worker says when it began the first one and
when it came to the last. The database is made for the occasion.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from celery import Celery
from redis import Redis

ROUNDS = 3
CORES = os.cpu_count() or 1
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/4")
NAME = os.environ.setdefault("BENCHMARK_NAME", f"run_cancel_benchmark_{os.getpid()}")
CASES = {
    "without the line": "",
    "with the line": "django_run_cancel.integrations.celery:CancellableTask",
}

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")


def make_app(task_cls: str) -> Celery:
    app = Celery(NAME, broker=REDIS_URL, task_cls=task_cls or None)
    app.conf.update(
        task_default_queue=NAME,
        task_ignore_result=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )

    @app.task(shared=False, name="benchmark.noop")
    def noop(reached: str = "") -> None:
        if reached:
            with Redis.from_url(REDIS_URL) as redis:
                redis.set(f"{NAME}.{reached}", time.time(), ex=600)

    return app


def main(tasks: int) -> None:
    import django

    django.setup()
    from django.db import connection

    if connection.vendor != "postgresql":
        print("Tracking is measured on PostgreSQL alone: DATABASE_URL names a database of it.")
        return
    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        print(f"{tasks} tasks, {CORES} cores, PostgreSQL {connection.pg_version // 10_000}")
        best = dict.fromkeys(CASES, (0.0, 0.0))
        for _ in range(ROUNDS):
            for case, task_cls in CASES.items():
                measured = measure(tasks, task_cls)
                best[case] = tuple(map(max, best[case], measured))  # type: ignore[assignment]
        for case, (published, run) in best.items():
            print(f"{case + ':':<20} {published:>5.0f} published/s {run:>5.0f} run/s")
    finally:
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)


def measure(tasks: int, task_cls: str) -> tuple[float, float]:
    """Return how many tasks a second are published, and how many are run."""
    from django_run_cancel.models import get_run_model

    app = make_app(task_cls)
    noop = app.tasks["benchmark.noop"]
    noop.delay("first")  # also connects
    begin = time.perf_counter()
    for _ in range(tasks):
        noop.delay()
    published = tasks / (time.perf_counter() - begin)
    noop.delay("last")
    try:
        with Redis.from_url(REDIS_URL) as redis, worker(task_cls):
            while not redis.exists(f"{NAME}.last"):
                time.sleep(0.1)
            first, last = (float(redis.getdel(f"{NAME}.{each}")) for each in ("first", "last"))
    finally:
        app.control.purge()
        app.close()
        runs = get_run_model()._base_manager.all().delete()[0]
    assert runs == (tasks + 2 if task_cls else 0)
    return published, tasks / (last - first)


@contextmanager
def worker(task_cls: str) -> Iterator[None]:
    """Run a worker on the database of this process."""
    from django.db import connection

    name = connection.settings_dict["NAME"]
    url = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}")
    command = ["-m", "celery", "-A", "benchmarks.tracking:app_of_worker", "worker"]
    process = subprocess.Popen(
        [sys.executable, *command, "-c", str(CORES), "--without-gossip", "--without-mingle"],
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, "DATABASE_URL": url.geturl(), "BENCHMARK_TASK_CLS": task_cls},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if "BENCHMARK_TASK_CLS" in os.environ:
    app_of_worker = make_app(os.environ["BENCHMARK_TASK_CLS"])

if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_500)
