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

from django_run_cancel.backends.huey import cancel_refused
from django_run_cancel.worker import execution
from tests.backends import jobs


def make_task(name: str, url: str) -> TaskWrapper:
    """Return the task of a Huey of this name."""

    def work(run_id: str, task: Any = None) -> None:
        with cancel_refused(), execution(run_id, requeue_on=lambda _: task.retries > 0) as run:
            jobs.body(run)

    decorate: Any = RedisHuey(name, url=url).task(retries=2, retry_delay=1, context=True)
    return decorate(work)


if "HUEY_NAME" in os.environ:
    task = make_task(os.environ["HUEY_NAME"], os.environ["HUEY_URL"])
    huey = task.huey
