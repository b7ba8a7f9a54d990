"""The Huey of the tests, and the task that it runs."""

from __future__ import annotations

import os
from typing import Any

import django
from django.apps import apps

if not apps.ready:
    django.setup()

from huey import RedisHuey
from huey.api import TaskWrapper

from django_run_cancel.execution import execution
from django_run_cancel.integrations.huey import cancellable, ends_cancelled
from django_run_cancel.testing import jobs


def make_task(name: str, url: str) -> TaskWrapper:
    """Return the task of a Huey of this name."""

    def work(run_id: str, task: Any = None) -> None:
        with ends_cancelled(), execution(run_id, requeue_on=lambda _: task.retries > 0) as run:
            jobs.run_job(run)

    decorate: Any = RedisHuey(name, url=url).task(retries=2, retry_delay=1, context=True)
    return decorate(work)


def make_tracked_task(huey: Any) -> TaskWrapper:
    """Return a task of a Huey that is a run of its own."""

    def tracked(title: str) -> None:
        jobs.run_current_job()

    return cancellable(huey.task(retries=jobs.TRIES - 1, retry_delay=1)(tracked))


if "HUEY_NAME" in os.environ:
    task = make_task(os.environ["HUEY_NAME"], os.environ["HUEY_URL"])
    make_tracked_task(task.huey)
    huey = task.huey
