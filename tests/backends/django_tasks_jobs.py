"""Tasks for the tests, on our side and in the worker."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from django_run_cancel.execution import execution
from django_run_cancel.testing import jobs

try:
    from django.tasks import task
except ImportError:  # Django 5.2
    from django_tasks import task


@task
def crawl(run_id: str) -> None:
    try:
        with execution(run_id, requeue_on=lambda _: jobs.has_tries_left(run_id)) as current:
            jobs.run_job(current)
    except jobs.JobFailed:
        # Django Tasks know no retries.
        if not jobs.has_tries_left(run_id):
            raise
        crawl.using(run_after=timezone.now() + timedelta(seconds=1)).enqueue(run_id)


@task
def crawl_page(run_id: str, page: str) -> None:
    with execution(run_id):
        jobs.trace(run_id, f"page {page}")
