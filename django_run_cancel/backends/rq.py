"""RQ, on Redis: waiting jobs are cancelled, and by force workers kill running ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.utils import import_attribute

from django_run_cancel.backends.base import (
    BackendError,
    BaseBackend,
    StopOutcome,
    StopRequest,
    TaskCall,
)
from django_run_cancel.exceptions import UnknownTask
from django_run_cancel.models import AbstractRun

WAITING = set(JobStatus) - {
    *(JobStatus.STARTED, JobStatus.FINISHED, JobStatus.FAILED),
    *(JobStatus.STOPPED, JobStatus.CANCELED),
}

RUNNING = {JobStatus.STARTED}

DISPATCHED = "run_cancel_dispatched"
"""Key in the ``meta`` of a job that works on a run which exists already, and is no run of its own.
"""

IDLE = WAITING | {JobStatus.FINISHED}
"""If it was not running. When only a worker is killed, the process that has the job works on as an
orphan, and the job is failed, or tried again: then it waits, and finishes when it is refused.
"""


class RQBackend(BaseBackend):
    """Enqueues a function for each run, takes jobs out of the queue and kills running ones.

    The id of the job is the external id.

    Options:
        URL: Of the Redis with the queue.
        FUNC: Dotted path of the function of runs that are dispatched without one.
        QUEUE: Name of the queue, ``"default"`` by default.
        JOB: More arguments of ``Queue.enqueue()``, such as ``retry``. ``job_timeout`` is -1, none,
            unless it is among them.
    """

    can_force = True
    required_options = frozenset({"URL"})
    optional_options = frozenset({"QUEUE", "JOB"})
    task_option = "FUNC"
    dispatch_options = frozenset(
        {
            "at_front",
            "depends_on",
            "description",
            "failure_ttl",
            "job_timeout",
            "meta",
            "queue",
            "result_ttl",
            "ttl",
        }
    )

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        super().__init__(alias, options)
        try:
            urlsplit(self.options["URL"]).port  # noqa: B018
        except ValueError:
            # Not from it: it may name a part of the password.
            raise ImproperlyConfigured(
                f"URL of the backend {alias!r} is none. Are special characters in its password "
                "escaped, as urllib.parse.quote() does it?"
            ) from None

    def get_task(self, name: str) -> Any:
        """Return the function with this dotted path, found as RQ's workers do."""
        try:
            return import_attribute(name)
        except (ImportError, ValueError) as error:
            raise UnknownTask(self.alias, name) from error

    @contextmanager
    def _connect(self) -> Iterator[Redis]:
        """Connect anew, and never wait longer than the timeout."""
        with Redis.from_url(
            self.options["URL"],
            socket_timeout=self.timeout,
            socket_connect_timeout=self.timeout,
            retry=Retry(NoBackoff(), 0),
        ) as connection:
            yield connection

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008
        """Enqueue the job, unless it is there."""
        options = {"job_timeout": -1, **self.options.get("JOB", {}), **call.options}
        queue = options.pop("queue", self.options.get("QUEUE", "default"))
        options["meta"] = {**(options.get("meta") or {}), DISPATCHED: True}
        try:
            with self._connect() as connection:
                # Not with unique=True, which rq has only since 2.8. A job that two processes
                # enqueue at the same moment runs once too: execution() refuses the second.
                if not Job.exists(run.external_id, connection=connection):
                    Queue(queue, connection=connection).enqueue(
                        call.task or self.options["FUNC"],
                        args=[run.run_id, *call.args],
                        kwargs=dict(call.kwargs),
                        job_id=run.external_id,
                        **options,
                    )
        except Exception as error:
            raise BackendError(f"RQ: {error}") from error

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Cancel what waits and, by force, let workers kill what runs.

        RQ has no way to stop running code that is less than SIGKILL.
        """
        ids = list(dict.fromkeys(request.external_id for request in requests))
        if not ids:
            return {}
        try:
            with self._connect() as connection:
                jobs = Job.fetch_many(ids, connection)
                states = {i: _status(job) for i, job in zip(ids, jobs, strict=True)}
                # First, as a worker whose job is killed takes the next one.
                for job in jobs:
                    if job is not None and states[job.id] in WAITING:
                        with suppress(InvalidJobOperation):  # cancelled or gone meanwhile
                            job.cancel()
                if force:
                    states |= self._kill([i for i in ids if states[i] in RUNNING], connection)
        except Exception as error:  # noqa: BLE001 - of any kind, and the caller goes on
            return dict.fromkeys(ids, error)
        running = {request.external_id for request in requests if request.running}
        return {i: _outcome(status, force, i in running) for i, status in states.items()}

    def ping(self) -> None:
        """Ask Redis for a sign of life."""
        with self._connect() as connection:
            connection.ping()

    def _kill(self, ids: list[str], connection: Redis) -> dict[str, JobStatus | None]:
        """Tell the workers, and wait until they say that they have done it."""
        states: dict[str, JobStatus | None] = {}
        for external_id in ids:
            with suppress(InvalidJobOperation, NoSuchJobError):  # ended meanwhile
                send_stop_job_command(connection, external_id)
        until = time.monotonic() + self.timeout
        while ids and time.monotonic() < until:
            time.sleep(0.02)
            states |= zip(ids, map(_status, Job.fetch_many(ids, connection)), strict=True)
            ids = [i for i in ids if states[i] in RUNNING]
        return states


def _status(job: Job | None) -> JobStatus | None:
    return None if job is None else job.get_status(refresh=False)


def _outcome(status: JobStatus | None, force: bool, running: bool) -> StopOutcome:
    if status in RUNNING:
        # Workers that are away do not hear it, nor does one without a process for each job.
        return StopOutcome.TOLD_ONCE if force else StopOutcome.UNSUPPORTED
    # A worker that says that it has stopped the job has waited for the end of its process.
    if status == JobStatus.STOPPED or (status in IDLE and not running):
        return StopOutcome.STOPPED
    return StopOutcome.TOLD
