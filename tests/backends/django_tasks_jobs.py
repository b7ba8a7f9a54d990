"""Tasks for the tests, on our side and in the worker."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from django_run_cancel.worker import execution
from tests.backends import jobs

try:
    from django.tasks import task
except ImportError:  # Django 5.2
    from django_tasks import task


@task
def crawl(run_id: str) -> None:
    try:
        with execution(run_id, requeue_on=lambda _: jobs.has_tries_left(run_id)) as current:
            jobs.body(current)
    except jobs.Oops:
        # Django Tasks know no retries.
        if not jobs.has_tries_left(run_id):
            raise
        crawl.using(run_after=timezone.now() + timedelta(seconds=1)).enqueue(run_id)
