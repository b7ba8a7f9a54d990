"""RQ jobs like those that exist: with arguments, retries, results, callbacks and dependents."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import django
from django.apps import apps
from django.conf import settings

if not apps.ready:
    django.setup()

from redis import Redis
from rq import Queue, get_current_job
from rq.job import Retry

from django_run_cancel.execution import checkpoint
from django_run_cancel.integrations.rq import CancellableJob as CancellableJob
from django_run_cancel.testing import jobs

if "RQ_HOST" in os.environ:
    settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.5


def trace(name: str, text: str) -> None:
    with (Path(os.environ[jobs.TRACE_FOLDER]) / name).open("a") as file:
        file.write(f"{text}\n")


def add(x: int, y: int = 2) -> int:
    return x + y


async def add_async(x: int, y: int = 2) -> int:
    return x + y


def works(name: str) -> str:
    trace(name, f"started {os.getpid()}")
    for _ in range(2_400):
        checkpoint()
        time.sleep(0.05)
    return "done"


def never_asks(name: str) -> None:
    trace(name, "started")
    time.sleep(600)


def exits(name: str) -> None:
    os._exit(1)


def fails(*args: Any) -> None:
    raise ValueError("wrong")


def fails_first(name: str) -> str:
    trace(name, "tried")
    job = get_current_job()
    assert job is not None
    if job.retries_left:
        raise ValueError("once more")
    return "second"


def returns_retry(name: str) -> Any:
    trace(name, "tried")
    return Retry(max=1)


def repeats(name: str) -> None:
    trace(name, "ran")


def parent(name: str, queue: str, meta: dict[str, Any]) -> str:
    job = get_current_job()
    assert job is not None
    jobs_of_host = Queue(queue, connection=job.connection, job_class=type(job))
    return jobs_of_host.enqueue(works, name, meta=meta).id


def on_success(job: Any, connection: Redis, result: Any) -> None:
    trace("table", f"{job.func_name.split('.')[-1]} succeeded")


def on_failure(job: Any, connection: Redis, kind: Any, error: Any, stack: Any) -> None:
    trace("table", f"{job.func_name.split('.')[-1]} failed")
