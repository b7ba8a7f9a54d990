"""The guide "A host with its own job table": its example is written to a folder, and runs on RQ."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.services import require_package, require_service

require_package("rq")

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "job-table.md"

QUEUES = """
from django.conf import settings
from redis import Redis
from rq import Queue

from django_run_cancel.integrations.rq import CancellableJob

connection = Redis.from_url(settings.RUN_CANCEL_BACKENDS["rq"]["OPTIONS"]["URL"])
before = Queue("{name}", connection=connection)
queue = Queue("{name}", connection=connection, job_class=CancellableJob)
"""

SETTINGS = """
from pathlib import Path

USE_TZ = True
SECRET_KEY = "only for tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django_run_cancel", "jobs"]
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parent / "db.sqlite3",
        "OPTIONS": {{"transaction_mode": "IMMEDIATE"}},
    }}
}}
RUN_CANCEL_BACKENDS = {{
    "rq": {{
        "BACKEND": "django_run_cancel.backends.rq.RQBackend",
        "OPTIONS": {{"URL": "{url}", "QUEUE": "{name}"}},
    }}
}}
"""

PLAY = """
import django

django.setup()

from django.core.management import call_command

call_command("makemigrations", "jobs", verbosity=0)
call_command("migrate", verbosity=0)

from rq import SimpleWorker
from rq.job import JobStatus

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.execution import current_run
from django_run_cancel.models import get_run_model
from jobs import work
from jobs.adopt import adopt_jobs
from jobs.cancelling import stop_job
from jobs.lost import write_lost
from jobs.models import Job
from jobs.publish import start_job
from project.queues import before, queue


class User:
    def get_username(self):
        return "ada"


def crawl_page(page):
    if page == 1:
        raise ValueError("wrong")
    if page == 2:
        cancel_runs([current_run().run_id], requested_by="tests")
        while not current_run().cancel_requested:
            pass
    if page == 3 and len(tries) < 2:
        tries.append(end_of(Job.objects.get(pk=current_run().run_id))[:2])
        raise ConnectionError("flaky")


tries = []


def crawl(pages, page):
    work.crawl_page = lambda each: crawl_page(page)
    job = start_job(pages)
    SimpleWorker([queue], connection=queue.connection, job_class=queue.job_class).work(burst=True)
    deliver_due()
    return end_of(job)


def end_of(job):
    job.refresh_from_db()
    rq = queue.fetch_job(str(job.pk)).get_status().value
    return job.status, get_run_model().objects.get(run_id=str(job.pk)).status, rq


try:
    old = [Job.objects.create(pages=1) for _ in range(2)]
    for job in old:
        before.enqueue(work.crawl, str(job.pk), job_id=str(job.pk))
    adopt_jobs()
    adopt_jobs()
    assert stop_job(old[0], user=User())
    deliver_due()
    assert end_of(old[0]) == ("stopped", "cancelled", "canceled"), end_of(old[0])
    assert end_of(old[1]) == ("pending", "queued", "queued"), end_of(old[1])
    ends = [crawl(2, 0), crawl(1, 1), crawl(2, 2)]
    assert end_of(old[1]) == ("done", "completed", "finished"), end_of(old[1])
    assert ends == [
        ("done", "completed", "finished"),
        ("errored", "failed", "failed"),
        ("stopped", "cancelled", "canceled"),
    ], ends
    # Tried again by RQ: twice in vain, and the third time as well as it can be.
    assert crawl(1, 3) == ("done", "completed", "finished")
    assert tries == [("started", "running")] * 2, tries
    # Cancelled between two tries.
    flaky = start_job(1)
    Job.objects.filter(pk=flaky.pk).update(status="errored")
    stop_job(flaky, user=User())
    deliver_due()
    assert end_of(flaky) == ("stopped", "cancelled", "canceled"), end_of(flaky)
    # Its process was killed, and RQ has found that.
    lost, working = start_job(1), start_job(1)
    Job.objects.filter(pk__in=[lost.pk, working.pk]).update(status="started")
    queue.fetch_job(str(lost.pk)).set_status(JobStatus.FAILED)
    write_lost()
    assert end_of(lost) == ("errored", "failed", "failed"), end_of(lost)
    assert end_of(working) == ("started", "queued", "queued"), end_of(working)
    waiting = start_job(1)
    stop_job(waiting, user=User())
    assert crawl(1, 0)[0] == "done"
    assert end_of(waiting) == ("stopped", "cancelled", "canceled"), end_of(waiting)
finally:
    for job in Job.objects.all():
        found = before.fetch_job(str(job.pk))
        if found is not None:
            found.delete()
    before.delete()
"""


@pytest.mark.broker
def test_example(tmp_path: Path) -> None:
    name = f"tested-{uuid.uuid4().hex}"
    files = {
        "project/__init__.py": "",
        "project/settings.py": SETTINGS.format(url=require_service("Redis"), name=name),
        "project/queues.py": QUEUES.format(name=name),
        "jobs/__init__.py": "",
        "play.py": PLAY,
    }
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.S | re.M):
        path, content = block.split("\n", 1)
        path = path.removeprefix("# ").removesuffix(", at the end")
        files[path] = files.get(path, "") + content
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project.settings",
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
