"""A Celery app like those that exist: tasks with arguments, retries, results and canvas."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import django
from celery import Celery, chain, group
from celery.signals import task_postrun, task_revoked
from django.apps import apps
from django.conf import settings

if not apps.ready:
    django.setup()

from django_run_cancel.execution import checkpoint
from django_run_cancel.testing.jobs import TRACE_FOLDER


def trace(name: str, text: str) -> None:
    with (Path(os.environ[TRACE_FOLDER]) / name).open("a") as file:
        file.write(f"{text}\n")


def deep_in_a_library(name: str) -> None:
    for _ in range(2_400):
        checkpoint()
        time.sleep(0.05)
    trace(name, "never stopped")


def make_app(name: str, broker: str, task_cls: str | None) -> Celery:
    app = Celery(name, broker=broker, backend=broker, task_cls=task_cls, set_as_current=False)
    app.conf.update(
        task_default_queue=name,
        control_exchange=f"{name}.control",
        event_exchange=f"{name}.events",
        worker_prefetch_multiplier=1,
        task_track_started=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )

    @app.task(shared=False, name="host.add")
    def add(x: int, y: int = 2) -> int:
        return x + y

    @app.task(shared=False, name="host.total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(
        shared=False,
        name="host.works",
        bind=True,
        acks_late=True,
        reject_on_worker_lost=True,
    )
    def works(self: Any, name: str) -> str:
        trace(name, f"started {self.request.id} {os.getpid()}")
        deep_in_a_library(name)
        return "done"

    @app.task(
        shared=False, name="host.fails_first", bind=True, max_retries=2, default_retry_delay=0
    )
    def fails_first(self: Any, name: str) -> str:
        trace(name, "tried")
        if self.request.retries == 0:
            raise self.retry()
        return "second"

    @app.task(shared=False, name="host.parent")
    def parent(name: str) -> str:
        child_id: str = works.delay(name).id
        return child_id

    @app.task(shared=False, name="host.never_asks")
    def never_asks(name: str) -> None:
        trace(name, "started")
        time.sleep(600)

    @app.task(shared=False, name="host.fails")
    def fails(*args: Any) -> None:
        raise ValueError("wrong")

    @app.task(shared=False, name="host.exits")
    def exits(*args: Any) -> None:
        os._exit(1)

    @app.task(shared=False, name="host.listed")
    def listed(numbers: list[int]) -> list[int]:
        return numbers

    @app.task(shared=False, name="host.replaces", bind=True)
    def replaces(self: Any, kind: str) -> Any:
        replacements = {
            "task": add.s(1, 2),
            "chain": chain(add.s(1), add.s(0)),
            "group": group(add.s(1), add.s(0)),
            "untracked": app.tasks["celery.accumulate"].s(3),
        }
        raise self.replace(replacements[kind])

    @app.task(shared=False, name="host.note_error")
    def note_error(request: Any, error: Any, traceback: Any, name: str = "") -> None:
        trace(name, "errback")

    @task_postrun.connect(weak=False)
    def note_end(sender: Any, state: str, **kwargs: Any) -> None:
        if TRACE_FOLDER in os.environ:
            trace("table", f"{sender.name} {state}")

    @task_revoked.connect(weak=False)
    def note_revoked(request: Any = None, **kwargs: Any) -> None:
        if TRACE_FOLDER in os.environ:
            trace("revoked", request.id)

    return app


if "CELERY_NAME" in os.environ:
    settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.5
    app = make_app(
        os.environ["CELERY_NAME"], os.environ["CELERY_URL"], os.environ["CELERY_CLASS"] or None
    )
