"""RQ jobs of a host with django-rq: its setting ``JOB_CLASS`` and its command ``rqworker``."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.services import require_package, require_service

require_package("django_rq")

SETTINGS = """
from pathlib import Path

USE_TZ = True
SECRET_KEY = "only for tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_rq",
    "django_run_cancel",
]
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parent / "db.sqlite3",
        "OPTIONS": {{"transaction_mode": "IMMEDIATE"}},
    }}
}}
RQ_QUEUES = {{"{name}": {{"URL": "{url}"}}}}
RQ = {{"RESULT_TTL": 60}}
RQ.setdefault("JOB_CLASS", "django_run_cancel.integrations.rq.CancellableJob")
RUN_CANCEL_BACKENDS = {{
    "rq": {{
        "BACKEND": "django_run_cancel.backends.rq.RQBackend",
        "OPTIONS": {{"URL": "{url}", "QUEUE": "{name}"}},
    }}
}}
"""

WORK = """
from django.conf import settings
from django_rq import job

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.execution import checkpoint, current_run


@job(next(iter(settings.RQ_QUEUES)))
def add(x, y=2):
    return x + y


@job(next(iter(settings.RQ_QUEUES)))
def works():
    run = current_run()
    cancel_runs([run.run_id], requested_by="tests")
    while not run.cancel_requested:
        pass
    checkpoint()
"""

PLAY = """
import subprocess
import sys

import django

django.setup()

import django_rq
from django.conf import settings
from django.core.management import call_command

call_command("migrate", verbosity=0)

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import Run
from work import add, works

(name,) = settings.RQ_QUEUES
queue = django_rq.get_queue(name)
jobs = [add.delay(1), works.delay(), queue.enqueue(add, 1)]
try:
    assert [Run.objects.get(run_id=job.id).status for job in jobs] == ["queued"] * 3
    cancel_runs([jobs[2].id], requested_by="tests")
    deliver_due()
    worker = [sys.executable, "-m", "django", "rqworker", name, "--burst"]
    subprocess.run(worker, check=True, timeout=300)
    ends = [
        (queue.fetch_job(job.id).get_status().value, Run.objects.get(run_id=job.id).status)
        for job in jobs
    ]
    assert ends == [
        ("finished", "completed"),
        ("canceled", "cancelled"),
        ("canceled", "cancelled"),
    ], ends
    assert queue.fetch_job(jobs[0].id).return_value() == 3
finally:
    for job in jobs:
        job.delete()
    queue.delete()
"""


@pytest.mark.broker
def test_job_class_and_worker(tmp_path: Path) -> None:
    name = f"tested-{uuid.uuid4().hex}"
    settings = SETTINGS.format(url=require_service("Redis"), name=name)
    for file, content in (("settings", settings), ("work", WORK), ("play", PLAY)):
        (tmp_path / f"{file}.py").write_text(content)
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
    }
    played = subprocess.run(
        [sys.executable, "play.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert played.returncode == 0, played.stdout
