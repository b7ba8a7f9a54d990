"""Procrastinate tasks like those that exist: arguments, retries, schedules, coroutines."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from procrastinate import JobContext, RetryStrategy
from procrastinate.contrib.django import app

from django_run_cancel.execution import checkpoint
from django_run_cancel.testing import jobs
from django_run_cancel.testing.jobs import TRACE_FOLDER

if TRACE_FOLDER in os.environ:  # in a worker
    settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.5


def trace(name: str, text: str) -> None:
    with (Path(os.environ[TRACE_FOLDER]) / name).open("a") as file:
        file.write(f"{text}\n")


@app.task(name="host.add")
def add(x: int, y: int = 2) -> int:
    trace("results", f"add {x + y}")
    return x + y


@app.task(name="host.aadd")
async def aadd(x: int, y: int = 2) -> int:
    await asyncio.sleep(0)
    trace("results", f"aadd {x + y}")
    return x + y


@app.task(name="host.fails_first", pass_context=True, retry=1)
def fails_first(context: JobContext, name: str) -> None:
    trace("results", f"{name} {context.job.attempts}")
    if context.job.attempts == 0:
        raise ValueError("wrong")


@app.task(name="host.job", retry=RetryStrategy(max_attempts=jobs.TRIES - 1, wait=1))
def job(title: str) -> None:
    jobs.run_current_job()


@app.task(name="host.fails")
def fails() -> None:
    raise ValueError("wrong")


@app.task(name="host.works", retry=True)
def works(name: str) -> None:
    trace(name, f"started {os.getpid()}")
    for _ in range(2_400):
        checkpoint()
        time.sleep(0.05)
    trace(name, "never stopped")


@app.task(name="host.waits", retry=True)
async def waits(name: str) -> None:
    """Never ask."""
    trace(name, f"started {os.getpid()}")
    try:
        await asyncio.sleep(120)
    finally:
        trace(name, "left")


@app.task(name="host.parent")
def parent(name: str) -> None:
    trace("children", str(works.defer(name=name)))


@app.task(name="host.aparent")
async def aparent(name: str) -> None:
    trace("children", str(await works.defer_async(name=name)))


async def _returned(name: str) -> None:
    trace(name, "started")
    for _ in range(2_400):
        checkpoint()
        await asyncio.sleep(0.05)


@app.task(name="host.returns_coroutine")
def returns_coroutine(name: str) -> Any:
    return _returned(name)
