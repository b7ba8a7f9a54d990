"""Tasks like those that exist: arguments, results, coroutines, a table filled by signals."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.dispatch import receiver
from django_tasks_db.compat import Task, task_enqueued, task_finished, task_started

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.execution import checkpoint, current_run, execution
from django_run_cancel.testing import wait_until
from django_run_cancel.testing.jobs import TRACE_FOLDER

try:
    from django.tasks import task
except ImportError:  # Django 5.2
    from django_tasks import task

if TRACE_FOLDER in os.environ:  # in a worker
    settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.5


def trace(name: str, text: str) -> None:
    if TRACE_FOLDER in os.environ:
        with (Path(os.environ[TRACE_FOLDER]) / name).open("a") as file:
            file.write(f"{text}\n")


def deep_in_a_library(name: str) -> None:
    for _ in range(2_400):
        checkpoint()
        time.sleep(0.05)
    trace(name, "never stopped")


@task
def add(x: int, y: int = 2) -> int:
    return x + y


@task
async def aadd(x: int, y: int = 2) -> int:
    await asyncio.sleep(0)
    return x + y


@task
def fails() -> None:
    raise ValueError("wrong")


@task(takes_context=True)
def attempt(context: Any, name: str) -> str:
    return f"{name} {context.attempt} {context.task_result.id}"


@task(takes_context=True)
def works(context: Any, name: str) -> None:
    trace(name, f"started {context.task_result.id} {os.getpid()}")
    deep_in_a_library(name)


@task
async def waits(name: str) -> None:
    """Never ask."""
    trace(name, "started")
    try:
        await asyncio.sleep(120)
    finally:
        trace(name, "left")


@task
def parent(name: str) -> str:
    return str(works.enqueue(name).id)


@task
async def aparent(name: str) -> str:
    return str((await works.aenqueue(name)).id)


@receiver([task_enqueued, task_started, task_finished], dispatch_uid="host")
def note_status(task_result: Any, **kwargs: Any) -> None:
    known: Task[Any, Any] = task_result.task
    trace("table", f"{known.name} {task_result.status}")


@task
def takes_run_id(run_id: str) -> None:
    with execution(run_id):
        pass


@task
def cancels_itself() -> None:
    running = current_run()
    assert running is not None
    cancel_runs([running.run_id], requested_by="tests")
    wait_until(lambda: running.cancel_requested, "the request")
    running.checkpoint()


@task
async def acancels_itself() -> None:
    running = current_run()
    assert running is not None
    await sync_to_async(cancel_runs)([running.run_id], requested_by="tests")
    await asyncio.sleep(120)


@task
def calls() -> str:
    return str(add.enqueue(1).id)


@task
async def acalls() -> str:
    return str((await add.aenqueue(1)).id)
