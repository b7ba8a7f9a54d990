"""The Celery app of the tests, and the task that it runs."""

from __future__ import annotations

import os
from typing import Any

import django
from celery import Celery
from django.apps import apps

if not apps.ready:
    django.setup()

from django_run_cancel.integrations.celery import CancellableTask, RunTask
from django_run_cancel.testing import jobs

TASK = "work"
PAGE = "page"
TRACKED = "tracked"
QUICK = "quick"
"""Is tried again at once, and by whichever worker is free."""


def make_app(name: str, url: str) -> Celery:
    """Return an app with queues and an exchange for control of its own."""
    app = Celery(name, broker=url, set_as_current=False)
    app.conf.update(
        task_default_queue=name,
        control_exchange=f"{name}.control",
        event_exchange=f"{name}.events",
        worker_prefetch_multiplier=int(os.environ.get("CELERY_PREFETCH", "1")),
        task_acks_late=True,
        task_ignore_result=True,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=True,
    )

    @app.task(name=QUICK, base=RunTask, shared=False, bind=True)
    def quick(self: Any, run: Any) -> None:
        if self.request.retries == 0:
            raise self.retry(countdown=0)

    @app.task(
        name=TASK,
        base=RunTask,
        shared=False,
        autoretry_for=[jobs.JobFailed],
        retry_backoff=False,
        default_retry_delay=1,
        max_retries=jobs.TRIES - 1,
    )
    def work(run: Any) -> None:
        jobs.run_job(run)

    @app.task(name=PAGE, base=RunTask, shared=False)
    def page(run: Any, path: str, depth: int) -> None:
        jobs.trace(run.run.run_id, f"page {path} {depth}")

    @app.task(
        name=TRACKED,
        base=CancellableTask,
        shared=False,
        autoretry_for=[jobs.JobFailed],
        retry_backoff=False,
        default_retry_delay=1,
        max_retries=jobs.TRIES - 1,
    )
    def tracked(title: str) -> None:
        jobs.run_current_job()

    return app


if "CELERY_NAME" in os.environ:
    app = make_app(os.environ["CELERY_NAME"], os.environ["CELERY_URL"])
