"""RQ backend: cancels waiting jobs, and with force lets workers kill running ones."""

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
"""Key in the ``meta`` of jobs that ``dispatch()`` enqueues: integrations create no run for them."""

IDLE = WAITING | {JobStatus.FINISHED}
"""Statuses that prove that the job of a run which was not running will not run.

They prove nothing about a running job: if its worker was killed, the process that executes the job
may continue as an orphan, while RQ retries the job, and the retry waits or finishes.
"""


class RQBackend(BaseBackend):
    """Enqueues a job for each run, cancels waiting jobs and kills running ones.

    The external id is the id of the job.

    Options:
        URL: URL of the Redis server with the queue.
        FUNC: Dotted path of the default function.
        QUEUE: Name of the queue; by default ``"default"``.
        JOB: Further arguments of ``Queue.enqueue()``, such as ``retry``. The default of
            ``job_timeout`` is -1, no limit.
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
            urlsplit(self.options["URL"]).port  # noqa: B018  # raises if it is invalid
        except ValueError:
            # Without the cause, whose message may contain a part of the password.
            raise ImproperlyConfigured(
                f"URL of the backend {alias!r} is none. Are special characters in its password "
                "escaped, as urllib.parse.quote() does it?"
            ) from None

    def get_task(self, name: str) -> Any:
        """Return the function with this dotted path, imported as by RQ's workers."""
        try:
            return import_attribute(name)
        except (ImportError, ValueError) as error:
            raise UnknownTask(self.alias, name) from error

    @contextmanager
    def _connect(self) -> Iterator[Redis]:
        """Open a new connection with the timeout."""
        with Redis.from_url(
            self.options["URL"],
            socket_timeout=self.timeout,
            socket_connect_timeout=self.timeout,
            retry=Retry(NoBackoff(), 0),
        ) as connection:
            yield connection

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Enqueue the job, unless it exists."""
        options = {"job_timeout": -1, **self.options.get("JOB", {}), **call.options}
        queue = options.pop("queue", self.options.get("QUEUE", "default"))
        options["meta"] = {**(options.get("meta") or {}), DISPATCHED: True}
        try:
            with self._connect() as connection:
                # Without unique=True, which needs RQ 2.8. If two processes enqueue the job at the
                # same time, execution() refuses the second.
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
        """Cancel waiting jobs and, with force, let workers kill running ones.

        RQ can only stop running code by SIGKILL.
        """
        ids = list(dict.fromkeys(request.external_id for request in requests))
        if not ids:
            return {}
        try:
            with self._connect() as connection:
                jobs = Job.fetch_many(ids, connection)
                states = {i: _status(job) for i, job in zip(ids, jobs, strict=True)}
                # Cancel before killing, as a worker whose job is killed starts the next one.
                for job in jobs:
                    if job is not None and states[job.id] in WAITING:
                        with suppress(InvalidJobOperation):  # cancelled or deleted in the meantime
                            job.cancel()
                if force:
                    states |= self._kill([i for i in ids if states[i] in RUNNING], connection)
        except Exception as error:  # noqa: BLE001 - any client error
            return dict.fromkeys(ids, error)
        running = {request.external_id for request in requests if request.running}
        return {i: _outcome(status, force, i in running) for i, status in states.items()}

    def ping(self) -> None:
        """Send PING to Redis."""
        with self._connect() as connection:
            connection.ping()

    def _kill(self, ids: list[str], connection: Redis) -> dict[str, JobStatus | None]:
        """Send stop commands to the workers, and wait until they have set the jobs' statuses."""
        states: dict[str, JobStatus | None] = {}
        for external_id in ids:
            with suppress(InvalidJobOperation, NoSuchJobError):  # ended in the meantime
                send_stop_job_command(connection, external_id)
        deadline = time.monotonic() + self.timeout
        while ids and time.monotonic() < deadline:
            time.sleep(0.02)
            states |= zip(ids, map(_status, Job.fetch_many(ids, connection)), strict=True)
            ids = [i for i in ids if states[i] in RUNNING]
        return states


def _status(job: Job | None) -> JobStatus | None:
    return None if job is None else job.get_status(refresh=False)


def _outcome(status: JobStatus | None, force: bool, running: bool) -> StopOutcome:
    if status in RUNNING:
        # Workers that are down, or without a process for each job, ignore the command.
        return StopOutcome.TOLD_ONCE if force else StopOutcome.UNSUPPORTED
    # A worker sets ``stopped`` after the process of the job has ended.
    if status == JobStatus.STOPPED or (status in IDLE and not running):
        return StopOutcome.STOPPED
    return StopOutcome.TOLD
