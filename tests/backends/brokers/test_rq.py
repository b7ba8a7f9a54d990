from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_run_cancel.backends import StopOutcome, TaskCall
from django_run_cancel.exceptions import UnknownTask
from django_run_cancel.testing import jobs, wait_until
from django_run_cancel.testing.conformance import (
    BrokerConformance,
    Harness,
    TrackedConformance,
)
from django_run_cancel.testing.conformance.harness import kill_session
from tests.backends.helpers import RedisHarness
from tests.services import URLS, require_package

require_package("rq")

from redis import Redis
from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.scheduler import RQScheduler

from django_run_cancel.backends.rq import WAITING, RQBackend
from django_run_cancel.integrations.rq import CancellableJob
from tests.backends.brokers import rq_jobs


class RQHarness(RedisHarness):
    backend = "django_run_cancel.backends.rq.RQBackend"
    ready = "Listening on"

    def options(self) -> dict[str, Any]:
        return {
            "URL": self.proxy.url,
            "FUNC": "tests.backends.brokers.rq_jobs.work",
            "QUEUE": self.name,
            "JOB": {"retry": Retry(max=2, interval=1)},
        }

    def command(self) -> list[str]:
        return ["-m", "rq.cli", "worker", "-u", URLS["Redis"], "--with-scheduler", self.name]

    def kill_worker_only(self) -> None:
        assert self._worker is not None
        self._worker.kill()
        self._worker.wait()
        self._orphaned, self._worker = self._worker.pid, None
        self._forget_scheduler()

    def kill_orphans(self) -> None:
        kill_session(self._orphaned)

    def kill(self) -> None:
        super().kill()
        self._forget_scheduler()

    def _forget_scheduler(self) -> None:
        # Its scheduler held it for a minute more, in which nothing would be tried again.
        with Redis.from_url(URLS["Redis"]) as connection:
            connection.delete(RQScheduler.get_locking_key(self.name))

    def tear_down(self) -> None:
        with Redis.from_url(URLS["Redis"]) as connection:
            queue = Queue(self.name, connection=connection)
            for registry in (
                queue.canceled_job_registry,
                queue.failed_job_registry,
                queue.finished_job_registry,
                queue.started_job_registry,
            ):
                for job_id in registry.get_job_ids(cleanup=False):
                    connection.delete(Job.key_for(job_id), f"rq:results:{job_id}")
            queue.delete(delete_jobs=True)
        super().tear_down()


class TrackedHarness(RQHarness):
    """Whose worker has the class of an integration."""

    def command(self) -> list[str]:
        of_class = ["--job-class", f"{rq_jobs.__name__}.CancellableJob"]
        return [*super().command()[:-1], *of_class, self.name]

    def publish(self, title: str) -> str:
        with Redis.from_url(URLS["Redis"]) as connection:
            queue = Queue(self.name, connection=connection, job_class=CancellableJob)
            retry = Retry(max=jobs.TRIES - 1, interval=1)
            return queue.enqueue(rq_jobs.tracked, title, retry=retry, job_timeout=-1).id


class TestTracked(TrackedConformance):
    harness_class = TrackedHarness


def test_url_with_a_password_that_is_not_escaped() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        RQBackend("rq", {"URL": "redis://user:S3CRET/x@host:6379/0", "FUNC": "x"})
    assert "S3CRET" not in str(caught.value)
    assert caught.value.__suppress_context__


class TestRQ(BrokerConformance):
    harness_class = RQHarness

    def test_one_alias_for_many_functions(self, harness: Harness) -> None:
        backend = RQBackend("many", {"URL": URLS["Redis"]})
        options = {"queue": harness.name, "job_timeout": 9, "description": "page"}
        call = TaskCall("tests.backends.brokers.rq_jobs.work", ["/a"], {"depth": 2}, options)
        backend.check_call(call)
        run = self.make_run(external_id=str(uuid.uuid4()))
        backend.dispatch(run, call)
        with Redis.from_url(URLS["Redis"]) as connection:
            job = Job.fetch(run.external_id, connection)
        assert (job.origin, job.timeout, job.description) == (harness.name, 9, "page")
        assert (job.func_name, job.args, job.kwargs) == (
            call.task,
            [run.run_id, "/a"],
            {"depth": 2},
        )
        with pytest.raises(TypeError, match="takes no retry"):
            backend.check_call(call._replace(options={"retry": 1}))
        with pytest.raises(UnknownTask):
            backend.check_call(TaskCall("nowhere.at_all"))

    @pytest.mark.parametrize("refused", [False, True])
    def test_only_the_worker_is_killed__is_not_said_to_have_stopped(
        self, harness: RQHarness, refused: bool
    ) -> None:
        """The process of its job works on, while RQ queues the job again and has it refused."""
        harness.online()
        run = self.started("swallows_exceptions")
        harness.kill_worker_only()
        self.cancel(run)
        with Redis.from_url(URLS["Redis"]) as connection:
            # What any worker does, once it has not heard of the job for a minute.
            queue = Queue(harness.name, connection=connection)
            StartedJobRegistry(queue=queue).cleanup(timestamp=time.time() + 1000)
            job = Job.fetch(run.external_id, connection)
            assert job.get_status() in WAITING
            if refused:
                harness.online()
                wait_until(lambda: job.get_status() == JobStatus.FINISHED, "the refusal")
        for force in (True, False):
            assert self.told(run, running=True, force=force) == [StopOutcome.TOLD]
        assert self.stop_state(run) == "stopping"
        self.goes_on(run)
        harness.kill_orphans()
