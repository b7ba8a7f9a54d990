"""A Huey like those that exist: tasks with arguments, retries, pipelines, and a log of signals."""

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

from huey import RedisHuey
from huey.api import Huey
from huey.signals import SIGNAL_CANCELED, SIGNAL_COMPLETE, SIGNAL_ERROR, SIGNAL_REVOKED

from django_run_cancel.execution import checkpoint
from django_run_cancel.integrations.huey import cancellable
from django_run_cancel.testing.jobs import TRACE_FOLDER


def trace(name: str, text: str) -> None:
    if TRACE_FOLDER in os.environ:
        with (Path(os.environ[TRACE_FOLDER]) / name).open("a") as file:
            file.write(f"{text}\n")


def deep_in_a_library(name: str) -> None:
    for _ in range(2_400):
        checkpoint()
        time.sleep(0.05)
    trace(name, "never stopped")


def add_tasks(huey: Huey) -> dict[str, Any]:
    """Return the tasks of the host by name."""

    @huey.task(name="add")
    def add(x: int, y: int = 2) -> int:
        return x + y

    @huey.task(name="works", context=True)
    def works(name: str, task: Any = None) -> str:
        trace(name, f"started {task.id} {os.getpid()}")
        deep_in_a_library(name)
        return "done"

    @huey.task(name="fails_first", retries=2, context=True)
    def fails_first(name: str, task: Any = None) -> str:
        trace(name, "tried")
        if task.retries == 2:
            raise ValueError("once")
        return "second"

    @huey.task(name="fails")
    def fails() -> None:
        raise ValueError("always")

    @huey.task(name="parent")
    def parent(name: str) -> str:
        child_id: str = works(name).id
        return child_id

    @huey.task(name="note_error")
    def note_error(name: str, error: Any = None) -> None:
        trace(name, f"handled {type(error).__name__}")

    @huey.signal(SIGNAL_CANCELED, SIGNAL_COMPLETE, SIGNAL_ERROR, SIGNAL_REVOKED)
    def note_signal(signal: str, task: Any, *args: Any) -> None:
        trace("signals", f"{task.name} {signal}")

    tasks = (add, works, fails_first, fails, parent, note_error)
    return {task.name: task for task in tasks}


def make_huey(name: str, url: str, with_line: bool) -> tuple[Huey, dict[str, Any]]:
    huey = RedisHuey(name, url=url)
    if with_line:
        cancellable(huey)
    return huey, add_tasks(huey)


if "HUEY_NAME" in os.environ:
    settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.5
    huey, _ = make_huey(
        os.environ["HUEY_NAME"], os.environ["HUEY_URL"], bool(os.environ["HUEY_LINE"])
    )
