"""The function that RQ runs in the tests."""

from __future__ import annotations

import contextlib

import django
from django.apps import apps

if not apps.ready:
    django.setup()

from rq import get_current_job

from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.execution import execution
from django_run_cancel.integrations.rq import CancellableJob as CancellableJob
from django_run_cancel.testing import jobs


def tried_again(error: BaseException) -> bool:
    job = get_current_job()
    assert job is not None
    return bool(job.retries_left)


def work(run_id: str) -> None:
    with (
        contextlib.suppress(RunCancelled, RunInProgress),
        execution(run_id, requeue_on=tried_again) as run,
    ):
        jobs.run_job(run)


def tracked(title: str) -> None:
    jobs.run_current_job()
