"""RQ jobs of a host as runs, with a real worker that forks."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import Delivery
from django_run_cancel.testing import wait_until
from tests.backends.helpers import RedisHarness
from tests.helpers import IS_SQLITE, make_run
from tests.services import URLS, require_package

require_package("rq")

from redis import Redis
from rq import Callback, Queue
from rq.command import send_stop_job_command
from rq.job import Job, JobStatus, Retry
from rq.registry import StartedJobRegistry

from django_run_cancel.integrations.rq import CancellableJob
from tests.integrations import rq_host
from tests.integrations.helpers import cancel, has_status, run_of

pytestmark = pytest.mark.broker


class HostHarness(RedisHarness):
    backend = "django_run_cancel.backends.rq.RQBackend"
    ready = "Listening on"
    job_class: type[Job] = CancellableJob

    def set_up(self) -> None:
        assert self.broker_url is not None
        self.connection = Redis.from_url(self.broker_url)
        self.queue = Queue(self.name, connection=self.connection, job_class=self.job_class)

    def environment(self) -> dict[str, str]:
        return {"RQ_HOST": "1"}

    def command(self) -> list[str]:
        # By the module of the host, which sets Django up.
        of_class = ["--job-class", f"{rq_host.__name__}.CancellableJob"]
        options = of_class if self.job_class is CancellableJob else []
        return [
            "-m",
            "rq.cli",
            "worker",
            "-u",
            URLS["Redis"],
            "--with-scheduler",
            *options,
            self.name,
        ]

    def traced(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def tear_down(self) -> None:
        for registry in (
            self.queue.canceled_job_registry,
            self.queue.deferred_job_registry,
            self.queue.failed_job_registry,
            self.queue.finished_job_registry,
            self.queue.scheduled_job_registry,
            self.queue.started_job_registry,
        ):
            for job_id in registry.get_job_ids(cleanup=False):
                self.connection.delete(Job.key_for(job_id), f"rq:results:{job_id}")
        self.queue.delete(delete_jobs=True)
        self.connection.close()
        super().tear_down()


class UntrackedHarness(HostHarness):
    job_class = Job


@pytest.fixture
def host(
    request: pytest.FixtureRequest, transactional_db: None, tmp_path: Path
) -> Iterator[HostHarness]:
    harness_class = getattr(request, "param", HostHarness)
    harness = harness_class(tmp_path, HostHarness.broker(), None)
    harness.set_up()
    try:
        yield harness
    finally:
        harness.kill()
        harness.tear_down()


def has_ended(job: Any, status: JobStatus) -> None:
    wait_until(lambda: job.get_status() == status, f"{job.func_name} to be {status.value}")


@pytest.mark.parametrize("host", [HostHarness, UntrackedHarness], indirect=True)
def test_results_are_as_before(host: HostHarness) -> None:
    """With the one line and without."""
    host.online()
    told: Any = {
        "on_success": Callback(rq_host.on_success),
        "on_failure": Callback(rq_host.on_failure),
    }
    added = host.queue.enqueue(rq_host.add, 1, y=4, **told)
    by_name = host.queue.enqueue(f"{rq_host.__name__}.add", args=(5,), meta={"own": 1})
    many = host.queue.enqueue_many(
        [Queue.prepare_data(rq_host.add, (n,), timeout=20) for n in range(2)]
    )
    async_ = host.queue.enqueue(rq_host.add_async, 3)
    later = host.queue.enqueue_in(timedelta(seconds=0.1), rq_host.add, 6)
    after = host.queue.enqueue(rq_host.add, 7, depends_on=[added, async_])
    retried = host.queue.enqueue(rq_host.fails_first, "retried", retry=Retry(max=1))
    failed = host.queue.enqueue(rq_host.fails, **told)
    finished = {added: 5, by_name: 7, many[0]: 2, many[1]: 3, async_: 5, later: 8, after: 9}
    for job, result in {**finished, retried: "second"}.items():
        has_ended(job, JobStatus.FINISHED)
        assert job.return_value() == result
    has_ended(failed, JobStatus.FAILED)
    assert failed.id in host.queue.failed_job_registry.get_job_ids()
    assert by_name.get_meta() == {"own": 1}
    assert host.traced("retried") == ["tried", "tried"]
    wait_until(lambda: len(host.traced("table")) == 2, "the callbacks")
    assert Counter(host.traced("table")) == {"add succeeded": 1, "fails failed": 1}
    if host.job_class is Job:
        assert not get_run_model()._default_manager.exists()
        return
    for job in (*finished, retried):
        assert has_status(job.id, "completed")
    assert run_of(failed.id).failure_reason == "ValueError: wrong"
    assert run_of(after.id).parent == run_of(added.id)


def test_cancelled_while_it_waits(host: HostHarness) -> None:
    waiting = host.queue.enqueue(rq_host.works, "waits", on_success=Callback(rq_host.on_success))
    after = host.queue.enqueue(rq_host.add, 1, depends_on=waiting)
    cancel(waiting.id)
    host.online()
    has_ended(waiting, JobStatus.CANCELED)
    wait_until(lambda: "Job OK" in host.log.read_text(), "the worker to be done")
    assert host.traced("waits") == host.traced("table") == []
    assert run_of(waiting.id).stop_state == "never_started"
    assert (after.get_status(), run_of(after.id).status) == (JobStatus.DEFERRED, "cancelled")


def test_cancelled_deep_in_a_library(host: HostHarness) -> None:
    host.online()
    job = host.queue.enqueue(
        rq_host.works, "works", retry=Retry(max=3), on_failure=Callback(rq_host.on_failure)
    )
    wait_until(lambda: host.traced("works"), "the start")
    cancel(job.id)
    has_ended(job, JobStatus.CANCELED)
    wait_until(lambda: run_of(job.id).stop_state == "acknowledged", "the evidence")
    assert len(host.traced("works")) == 1
    assert host.traced("table") == []
    assert job.id in host.queue.canceled_job_registry.get_job_ids()
    assert job.id not in host.queue.failed_job_registry.get_job_ids()
    assert "Traceback" not in host.log.read_text()


def test_children_go_along(host: HostHarness) -> None:
    host.online()
    of_child = host.queue.enqueue(rq_host.parent, "child", host.name, {})
    of_detached = host.queue.enqueue(
        rq_host.parent, "detached", host.name, {"run_cancel_detached": True}
    )
    for job in (of_child, of_detached):
        has_ended(job, JobStatus.FINISHED)
    child, detached = of_child.return_value(), of_detached.return_value()
    assert run_of(child).parent == run_of(of_child.id)
    assert run_of(detached).parent is None
    wait_until(lambda: host.traced("child"), "the start of the child")
    cancel(detached)
    cancel(child)
    has_ended(CancellableJob.fetch(detached, host.connection), JobStatus.CANCELED)


def test_worker_killed__runs_again(host: HostHarness) -> None:
    """As RQ tries it again; once the heartbeat of the dead execution is old enough."""
    host.online()
    job = host.queue.enqueue(rq_host.works, "killed", retry=Retry(max=1))
    wait_until(lambda: host.traced("killed"), "the start")
    host.kill()
    host.connection.delete(f"rq:scheduler-lock:{host.name}")
    StartedJobRegistry(queue=host.queue).cleanup(timestamp=time.time() + 1000)
    host.online()
    wait_until(lambda: len(host.traced("killed")) == 2, "the second start")
    cancel(job.id)
    has_ended(job, JobStatus.CANCELED)


def test_process_of_the_job_is_gone(host: HostHarness) -> None:
    host.online()
    lost = host.queue.enqueue(rq_host.exits, "lost")
    wait_until(lambda: has_status(lost.id, "failed"), "its run")
    assert "AbandonedJobError" in run_of(lost.id).failure_reason


def test_process_of_the_job_is_killed__runs_again(host: HostHarness) -> None:
    host.online()
    job = host.queue.enqueue(rq_host.works, "horse", retry=Retry(max=1))
    wait_until(lambda: host.traced("horse"), "the start")
    os.kill(int(host.traced("horse")[0].split()[1]), signal.SIGKILL)
    wait_until(lambda: len(host.traced("horse")) == 2, "the second start")
    assert run_of(job.id).status == "running"


def test_stopped_by_the_host(host: HostHarness) -> None:
    host.online()
    job = host.queue.enqueue(rq_host.never_asks, "stopped")
    wait_until(lambda: host.traced("stopped"), "the start")
    send_stop_job_command(host.connection, job.id)
    wait_until(lambda: has_status(job.id, "cancelled"), "its run")
    has_ended(job, JobStatus.STOPPED)
    record = run_of(job.id).cancellation
    assert (record.requested_by, record.reason) == ("rq", "The job has been stopped.")


def test_with_a_backend(host: HostHarness, settings: Any) -> None:
    """A job that waits is dropped, and one that has no checkpoint is killed."""
    settings.RUN_CANCEL_BACKENDS = {
        "rq": {"BACKEND": host.backend, "OPTIONS": {"URL": URLS["Redis"]}}
    }
    host.online()
    running = host.queue.enqueue(rq_host.never_asks, "running")
    wait_until(lambda: host.traced("running"), "the start")
    waiting = host.queue.enqueue(rq_host.works, "waiting")
    cancel_runs([running.id, waiting.id], requested_by="tests", force=True)
    wait_until(lambda: killed(running.id), "the evidence")
    has_ended(running, JobStatus.STOPPED)
    has_ended(waiting, JobStatus.CANCELED)
    assert run_of(waiting.id).stop_state == "never_started"


def killed(job_id: str) -> bool:
    CancellationItem.objects.filter(delivery=Delivery.PENDING).update(
        next_attempt_at=timezone.now()
    )
    deliver_due()
    return bool(run_of(job_id).stop_state == "killed")


def test_publisher_rolls_back(host: HostHarness) -> None:
    """RQ runs the job all the same, as it did before: the run is made at its start."""
    host.online()
    with transaction.atomic():
        job = host.queue.enqueue(rq_host.add, 1)
        transaction.set_rollback(True)
    has_ended(job, JobStatus.FINISHED)
    assert has_status(job.id, "completed")


@pytest.mark.skipif(IS_SQLITE, reason="SQLite has one writer at a time.")
def test_consumer_faster_than_the_commit(host: HostHarness) -> None:
    host.online()
    with transaction.atomic():
        make_run()
        job = host.queue.enqueue(rq_host.add, 1)
        has_ended(job, JobStatus.FINISHED)
    assert has_status(job.id, "completed")
