"""The function that RQ runs in the tests."""

from __future__ import annotations

import contextlib

import django
from django.apps import apps

if not apps.ready:
    django.setup()

from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.worker import execution
from tests.backends import jobs


def work(run_id: str) -> None:
    with (
        contextlib.suppress(RunCancelled, RunInProgress),
        execution(run_id, requeue_on=(jobs.Oops,)) as run,
    ):
        jobs.body(run)
