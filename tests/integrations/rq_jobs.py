"""RQ jobs that note their calls, and a worker in this process that executes them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db import transaction
from redis import Redis
from rq import Queue, SimpleWorker, get_current_job
from rq.job import Retry

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.execution import current_run
from django_run_cancel.integrations.rq import CancellableJob
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from tests.integrations.helpers import run_of

called: list[Any] = []


class Worker(SimpleWorker):
    """In the thread of the test, whose signal handlers it leaves alone."""

    def _install_signal_handlers(self) -> None:
        pass


@contextlib.contextmanager
def new_queue(connection: Redis) -> Iterator[Queue]:
    """Yield a queue; afterwards, delete it and what else is in Redis because of it."""
    called.clear()
    queue = Queue(f"tested-{uuid.uuid4().hex}", connection=connection, job_class=CancellableJob)
    before = set(connection.scan_iter("rq:*", count=1000))
    yield queue
    if keys := set(connection.scan_iter("rq:*", count=1000)) - before:
        ours = [key for key in keys if is_of(connection, key, queue)]
        connection.delete(queue.key, *ours)
    connection.srem("rq:queues", queue.key)


def is_of(connection: Redis, key: bytes, queue: Queue) -> bool:
    if queue.name.encode() in key:
        return True
    is_job = connection.type(key) == b"hash"
    return is_job and connection.hget(key, "origin") == queue.name.encode()


def work(queue: Queue) -> None:
    worker = Worker([queue], connection=queue.connection, job_class=queue.job_class)
    worker.work(burst=True, logging_level="WARNING")


def runs() -> int:
    return int(get_run_model()._default_manager.count())


# The functions of jobs


def note(*args: Any, **kwargs: Any) -> Any:
    running = current_run()
    called.append((args, kwargs, running and running.run_id))
    return len(called)


def note_success(job: Any, connection: Any, result: Any) -> None:
    called.append("success")


def note_failure(job: Any, connection: Any, kind: Any, error: Any, stack: Any) -> None:
    called.append("failure")


def cancels_itself(then: str) -> str:
    running = current_run()
    assert running is not None
    cancel_runs([running.run_id], requested_by="tests")
    if then == "checks":
        wait_until(lambda: running.cancel_requested, "the flag")
        running.checkpoint()
    if then == "fails":
        raise ValueError("while it was being cancelled")
    if then == "meets another":
        raise RunCancelled("tsk_1")
    return "done"


def fails(*args: Any) -> None:
    called.append("tried")
    raise ValueError("wrong")


def returns_retry(count: int) -> Retry:
    called.append("tried")
    return Retry(max=count)


def meets_another() -> None:
    raise TransitionNotAllowed("tsk_1", "failed", "completed")


def is_ended_from_outside(how: str) -> None:
    running = current_run()
    assert running is not None
    run = run_of(running.run_id)
    run.mark_completed() if how == "completed" else run.mark_failed("from outside")
    wait_until(lambda: running.cancel_requested, "the flag")
    running.checkpoint()


def publishes(queue: str, **options: Any) -> None:
    job = get_current_job()
    assert job is not None
    child = Queue(queue, connection=job.connection, job_class=CancellableJob)
    called.append(child.enqueue_in(timedelta(hours=1), note, **options).id)


def publishes_and_runs_it(queue: str) -> None:
    job = get_current_job()
    assert job is not None
    with transaction.atomic():
        child = Queue(queue, connection=job.connection, job_class=CancellableJob)
        called.append(child.enqueue(note).id)
        transaction.set_rollback(True)
