from __future__ import annotations

from typing import Any

from tests.backends.contract import BrokerContract, Harness
from tests.backends.services import URLS, require_package

require_package("rq")

from redis import Redis
from rq import Queue, Retry
from rq.job import Job
from rq.scheduler import RQScheduler


class RQHarness(Harness):
    backend = "django_run_cancel.backends.rq.RQBackend"
    service = "Redis"
    ready = "Listening on"

    def options(self) -> dict[str, Any]:
        return {
            "URL": self.proxy.url,
            "FUNC": "tests.backends.rq_jobs.work",
            "QUEUE": self.name,
            "JOB": {"retry": Retry(max=2, interval=1)},
        }

    def command(self) -> list[str]:
        return ["-m", "rq.cli", "worker", "-u", URLS["Redis"], "--with-scheduler", self.name]

    def kill(self) -> None:
        super().kill()
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


class TestRQ(BrokerContract):
    harness_class = RQHarness
