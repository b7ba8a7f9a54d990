"""RQ jobs of a host as runs: publishing, and a worker in this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import transaction

from django_run_cancel.backends import TaskCall
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import current_run, execution
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from tests.helpers import make_run, statuses
from tests.integrations.helpers import cancel, run_of
from tests.services import require_package, require_service

require_package("rq")

from redis import Redis
from redis import exceptions as exceptions_of_redis
from redis.client import Pipeline
from rq import Callback, Queue, SimpleWorker, exceptions, get_current_job
from rq.job import Job, JobStatus, Retry

from django_run_cancel.backends.rq import RQBackend
from django_run_cancel.integrations import rq as integration
from django_run_cancel.integrations.rq import CancellableJob

pytestmark = [pytest.mark.broker, pytest.mark.django_db(transaction=True)]

PATH = "django_run_cancel.backends.rq.RQBackend"
called: list[Any] = []


class Worker(SimpleWorker):
    """In the thread of the test, whose signal handlers it leaves alone."""

    def _install_signal_handlers(self) -> None:
        pass


@pytest.fixture
def connection() -> Iterator[Redis]:
    with Redis.from_url(require_service("Redis")) as connection:
        yield connection


@pytest.fixture
def queue(connection: Redis) -> Iterator[Queue]:
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


class Importer:
    @classmethod
    def handle(cls) -> None: ...

    def run(self) -> None: ...


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


class TestPublishing:
    def test_run_waits_for_its_job(self, queue: Queue, settings: Any) -> None:
        settings.RUN_CANCEL_BACKENDS = {"rq": {"BACKEND": PATH, "OPTIONS": {"URL": "redis://x"}}}
        with transaction.atomic():
            job = queue.enqueue(note, 1, on_success=Callback(note_success))
            assert runs() == 0
        run = run_of(job.id)
        assert (run.status, run.title, run.parent) == ("queued", f"{__name__}.note", None)
        assert (run.backend, run.external_id, run.metadata) == ("rq", job.id, {})
        assert job.get_meta() == {}

    def test_in_all_ways(self, queue: Queue) -> None:
        job_id = str(uuid.uuid4())
        jobs = [
            queue.enqueue(f"{__name__}.note", job_id=job_id),
            queue.enqueue_in(timedelta(hours=1), note),
            queue.enqueue_call(note, args=(1,)),
            *queue.enqueue_many([Queue.prepare_data(note, (n,)) for n in range(2)]),
            queue.enqueue_job(CancellableJob.create(note, connection=queue.connection)),
        ]
        assert [run_of(job.id).status for job in jobs] == ["queued"] * 6
        assert jobs[0].id == job_id
        assert runs() == 6

    @pytest.mark.parametrize("owner", ["class", "instance"])
    def test_method(self, queue: Queue, owner: str) -> None:
        """RQ itself calls methods of all classes the same, such as "handle"."""
        method = Importer.handle if owner == "class" else Importer().run
        assert run_of(queue.enqueue(method).id).title == f"{__name__}.Importer.{method.__name__}"

    @pytest.mark.skipif(not hasattr(exceptions, "DuplicateJobError"), reason="not in this RQ")
    def test_unique(self, queue: Queue) -> None:
        job = queue.enqueue(note, job_id=str(uuid.uuid4()), unique=True)
        with pytest.raises(exceptions.DuplicateJobError):
            queue.enqueue(note, job_id=job.id, unique=True)
        assert statuses(run_of(job.id)) == ["queued"]

    def test_one_that_is_not_enqueued(self, queue: Queue) -> None:
        job = CancellableJob.create(note, connection=queue.connection)
        queued = CancellableJob.create(note, connection=queue.connection, status=JobStatus.QUEUED)
        for each in (job, queued):
            each.save()
        assert runs() == 0
        queue.enqueue_job(queued)
        assert statuses(run_of(queued.id)) == ["queued"]
        queue.connection.delete(job.key)

    def test_pipeline_of_the_host(self, queue: Queue) -> None:
        pipeline = queue.connection.pipeline()
        discarded = queue.enqueue(note, pipeline=pipeline)
        pipeline.reset()
        prepared = [Queue.prepare_data(note) for _ in range(2)]
        jobs = queue.enqueue_many(prepared, pipeline=pipeline)
        assert runs() == 0
        pipeline.execute()
        assert statuses(*(run_of(job.id) for job in jobs)) == ["queued", "queued"]
        queue.enqueue_job(discarded, pipeline=pipeline)
        pipeline.execute()
        assert statuses(run_of(discarded.id)) == ["queued"]

    def test_redis_is_away(self, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody will execute the job: it has no run."""

        def refuse(*args: Any) -> None:
            raise exceptions_of_redis.ConnectionError("lost")

        monkeypatch.setattr(Pipeline, "immediate_execute_command", refuse)
        monkeypatch.setattr(Pipeline, "_execute_transaction", refuse)
        with pytest.raises(exceptions_of_redis.ConnectionError):
            queue.enqueue(note)
        assert runs() == 0

    def test_id_that_no_run_can_have(self, queue: Queue, caplog: Any) -> None:
        first = queue.enqueue(note, job_id="x" * 65)
        after = queue.enqueue(note, depends_on=first)
        work(queue)
        assert [run_id for args, kwargs, run_id in called] == [None, after.id]
        assert (run_of(after.id).status, run_of(after.id).parent) == ("completed", None)
        assert "no run can have the id" in caplog.text
        assert "Traceback" not in caplog.text

    def test_dependents(self, queue: Queue) -> None:
        first, other = queue.enqueue(note), queue.enqueue(note)
        last = queue.enqueue(note, depends_on=[first, other])
        (member,) = queue.enqueue_many([Queue.prepare_data(note, depends_on=[first])])
        assert run_of(last.id).parent == run_of(first.id)
        assert run_of(member.id).parent == run_of(first.id)

    def test_parent(self, queue: Queue) -> None:
        make_run("created", run_id="tsk_parent")
        with execution("tsk_parent"):
            child = queue.enqueue(note, meta={"own": 1})
            detached = queue.enqueue(note, meta={"run_cancel_detached": True})
        assert run_of(child.id).parent == run_of("tsk_parent")
        assert child.get_meta() == {"own": 1, "run_cancel_parent": "tsk_parent"}
        assert run_of(detached.id).parent is None

    def test_not_tracked(self, queue: Queue, settings: Any, django_assert_num_queries: Any) -> None:
        settings.RUN_CANCEL_TRACK = ["other.*"]
        with django_assert_num_queries(0):
            stopped, job = queue.enqueue(note), queue.enqueue(note)
            stopped.cancel(enqueue_dependents=True)
            work(queue)
            queue.enqueue(fails)
            work(queue)
            job.delete()
        assert called == [((), {}, None), "tried"]

    def test_dispatched_to_a_run_that_exists(self, queue: Queue) -> None:
        backend = RQBackend("rq", {"URL": require_service("Redis"), "QUEUE": queue.name})
        run = make_run("queued", external_id=str(uuid.uuid4()))
        backend.dispatch(run, TaskCall(f"{__name__}.note", [], {}, {"meta": {"own": 1}}))
        work(queue)
        assert called == [((run.run_id,), {}, None)]
        assert runs() == 1

    def test_what_goes_wrong_is_logged(
        self, queue: Queue, settings: Any, caplog: Any, monkeypatch: Any
    ) -> None:
        def broken(*args: Any) -> None:
            raise KeyError("broken")

        monkeypatch.setattr(integration, "backend_alias", broken)
        job = queue.enqueue(note)
        assert "No run was created for the job" in caplog.text
        monkeypatch.undo()
        monkeypatch.setattr(integration, "cancel_dropped", broken)
        monkeypatch.setattr(integration, "fail_dropped", broken)
        monkeypatch.setattr(integration, "run_rows", broken)
        after = queue.enqueue(note, depends_on=job)
        job.cancel(enqueue_dependents=True)
        job.set_status(JobStatus.FAILED)
        for text in ("was not cancelled", "was not ended", "are cancelled with it"):
            assert text in caplog.text
        assert after.get_status() == JobStatus.QUEUED


class TestExecuting:
    def test_run_of_the_job(self, queue: Queue) -> None:
        job = queue.enqueue(note, "a", key=1, on_success=Callback(note_success))
        work(queue)
        assert called == [(("a",), {"key": 1}, job.id), "success"]
        assert (job.get_status(), job.return_value()) == (JobStatus.FINISHED, 1)
        assert run_of(job.id).status == "completed"

    def test_published_before_the_upgrade(self, queue: Queue) -> None:
        job = Queue(queue.name, connection=queue.connection).enqueue(note)
        assert runs() == 0
        work(queue)
        assert run_of(job.id).status == "completed"

    def test_is_a_child_though_its_publisher_rolled_back(self, queue: Queue) -> None:
        job = queue.enqueue(publishes_and_runs_it, queue.name)
        work(queue)
        assert run_of(called[0]).parent == run_of(job.id)

    @pytest.mark.parametrize("options", [{}, {"result_ttl": 0}])
    def test_cancelled_before_it_starts(self, queue: Queue, options: Any) -> None:
        job = queue.enqueue(note, on_success=Callback(note_success), **options)
        after = queue.enqueue(note, depends_on=job)
        other = queue.enqueue(note, depends_on=[queue.enqueue_in(timedelta(1), note), job])
        cancel(job.id)
        assert statuses(run_of(after.id), run_of(other.id)) == ["cancelled", "queued"]
        work(queue)
        assert called == []
        assert job.get_status() == JobStatus.CANCELED
        assert job.id in queue.canceled_job_registry.get_job_ids()
        assert job.latest_result() is None
        assert after.get_status() == other.get_status() == JobStatus.DEFERRED
        assert run_of(job.id).stop_state == "never_started"
        record = run_of(other.id).cancellation
        assert record.requested_by == "tests"

    @pytest.mark.parametrize("then", ["checks", "fails", "returns", "meets another"])
    def test_cancelled_while_it_runs(self, queue: Queue, caplog: Any, then: str) -> None:
        job = queue.enqueue(
            cancels_itself,
            then,
            retry=Retry(max=3),
            on_success=Callback(note_success),
            on_failure=Callback(note_failure),
        )
        work(queue)
        assert job.get_status() == JobStatus.CANCELED
        assert called == []
        assert job.id not in queue.failed_job_registry.get_job_ids()
        run = run_of(job.id)
        assert (run.status, run.stop_state) == ("cancelled", "acknowledged")
        assert "Traceback" not in caplog.text

    def test_cancelled_by_the_host_too(self, queue: Queue) -> None:
        job = queue.enqueue(note)
        cancel(job.id)
        fetched = CancellableJob.fetch(job.id, queue.connection)
        fetched.cancel()
        fetched.perform()
        assert fetched.get_status() == JobStatus.CANCELED

    def test_parent_is_cancelled(self, queue: Queue) -> None:
        make_run("created", run_id="tsk_parent")
        with execution("tsk_parent"), transaction.atomic():
            job = queue.enqueue(note)
            transaction.set_rollback(True)
        make_run("running", run_id="tsk_other")
        run = run_of("tsk_parent")
        type(run)._default_manager.filter(pk=run.pk).update(status="running")
        cancel("tsk_parent")
        work(queue)
        assert called == []
        assert (job.get_status(), run_of(job.id).status) == (JobStatus.CANCELED, "cancelled")

    def test_failure(self, queue: Queue) -> None:
        job = queue.enqueue(fails, on_failure=Callback(note_failure))
        work(queue)
        assert called == ["tried", "failure"]
        run = run_of(job.id)
        assert (run.status, run.failure_reason) == ("failed", "ValueError: wrong")
        assert job.id in queue.failed_job_registry.get_job_ids()

    def test_error_of_another_run(self, queue: Queue) -> None:
        job = queue.enqueue(meets_another)
        work(queue)
        assert (job.get_status(), run_of(job.id).status) == (JobStatus.FAILED, "failed")

    def test_retries(self, queue: Queue) -> None:
        later = queue.enqueue(fails, retry=Retry(max=1, interval=600))
        job = queue.enqueue(fails, retry=Retry(max=2))
        work(queue)
        assert called == ["tried"] * 4
        assert run_of(job.id).status == "failed"
        assert (run_of(later.id).status, later.get_status()) == ("queued", JobStatus.SCHEDULED)

    @pytest.mark.skipif(not integration.RETURNED_RETRIES, reason="This RQ knows no such retry.")
    def test_returned_retries(self, queue: Queue) -> None:
        job = queue.enqueue(returns_retry, 2)
        work(queue)
        assert called == ["tried"] * 3
        assert job.get_status() == JobStatus.FAILED
        run = run_of(job.id)
        assert run.status == "failed"
        assert run.failure_reason.endswith("Exceeded: The job has been tried again 2 times.")

    def test_repeated(self, queue: Queue) -> None:
        """One run for all of them: it is queued until the last."""
        repeat = pytest.importorskip("rq.repeat")
        job = queue.enqueue(note, repeat=repeat.Repeat(times=2))
        later = queue.enqueue(note, repeat=repeat.Repeat(times=2, interval=600))
        work(queue)
        assert len(called) == 4
        assert statuses(run_of(job.id), run_of(later.id)) == ["completed", "queued"]

    def test_repeated__until_it_is_cancelled(self, queue: Queue) -> None:
        repeat = pytest.importorskip("rq.repeat")
        job = queue.enqueue(cancels_itself, "returns", repeat=repeat.Repeat(times=2))
        work(queue)
        assert job.get_status() == JobStatus.CANCELED
        assert len(queue) == 0


class TestSynchronous:
    @pytest.fixture
    def queue(self, queue: Queue) -> Queue:
        return Queue(
            queue.name, connection=queue.connection, job_class=CancellableJob, is_async=False
        )

    def test_run_of_the_job(self, queue: Queue) -> None:
        job = queue.enqueue(note, 1, on_success=Callback(note_success))
        assert called == [((1,), {}, job.id), "success"]
        assert (job.return_value(), run_of(job.id).status) == (1, "completed")
        with transaction.atomic():
            job = queue.enqueue(note, 1)
        assert run_of(job.id).status == "completed"

    def test_in_an_event_loop__without_a_run(self, queue: Queue, caplog: Any) -> None:
        """The ORM is refused there."""

        async def enqueue() -> list[Any]:
            return [queue.enqueue(note), queue.enqueue(fails)]

        done, failed = asyncio.run(enqueue())
        assert (done.get_status(), failed.get_status()) == (JobStatus.FINISHED, JobStatus.FAILED)
        assert (called, runs()) == ([((), {}, None), "tried"], 0)
        assert "SynchronousOnlyOperation" not in caplog.text

    def test_never_tried_again(self, queue: Queue) -> None:
        failed = queue.enqueue(fails, retry=Retry(max=3))
        returned = queue.enqueue(returns_retry, 1)
        assert statuses(run_of(failed.id), run_of(returned.id)) == ["failed", "completed"]

    def test_cancelled(self, queue: Queue) -> None:
        job = queue.enqueue(cancels_itself, "checks", on_success=Callback(note_success))
        assert (job.get_status(), called) == (JobStatus.CANCELED, [])


class TestDeliveredTwice:
    def test_after_its_end(self, queue: Queue) -> None:
        job = queue.enqueue(note)
        queue.push_job_id(job.id)
        work(queue)
        assert len(called) == 1
        assert (job.get_status(), job.return_value()) == (JobStatus.FINISHED, 1)

    def test_enqueued_again_by_the_host(self, queue: Queue) -> None:
        job = queue.enqueue(fails)
        work(queue)
        job.requeue()
        work(queue)
        queue.enqueue_job(job)
        work(queue)
        assert called == ["tried"] * 3
        latest = job.latest_result()
        assert latest is not None
        assert "TransitionNotAllowed" not in str(latest.exc_string)
        assert run_of(job.id).status == "failed"

    @pytest.mark.parametrize("use_tz", [True, False])
    @pytest.mark.parametrize(("minutes", "again"), [(-5, False), (5, True), (None, True)])
    def test_enqueued_before_or_after_the_end(
        self, queue: Queue, settings: Any, use_tz: bool, minutes: int | None, again: bool
    ) -> None:
        settings.USE_TZ = use_tz
        job = queue.enqueue(note)
        run = run_of(job.id)
        assert job._is_enqueued_again()  # that run has no end
        run.mark_running()
        run.mark_completed()
        job.enqueued_at = None
        if minutes is not None:
            job.enqueued_at = datetime.now(UTC) + timedelta(minutes=minutes)
            for naive in (job.enqueued_at, job.enqueued_at.replace(tzinfo=None)):
                job.enqueued_at = naive
                assert job._is_enqueued_again() is again
        assert job._is_enqueued_again() is again

    def test_while_it_runs(self, queue: Queue, monkeypatch: Any) -> None:
        def refuse(message: Any, **kwargs: Any) -> Any:
            raise RunInProgress(message.task_id)

        job = queue.enqueue(note)
        after = queue.enqueue(note, depends_on=job)
        monkeypatch.setattr(integration, "executing", refuse)
        work(queue)
        assert called == []
        assert job.latest_result() is None
        assert after.get_status() == JobStatus.DEFERRED
        assert run_of(job.id).status == "queued"

    @pytest.mark.parametrize(
        ("how", "status"), [("completed", JobStatus.FINISHED), ("failed", JobStatus.FAILED)]
    )
    def test_ended_from_outside(self, queue: Queue, how: str, status: JobStatus) -> None:
        job = queue.enqueue(is_ended_from_outside, how, on_success=Callback(note_success))
        work(queue)
        assert (job.get_status(), called) == (status, [])
        assert run_of(job.id).status == how


class TestByItsOwnMeans:
    """What the host does with RQ."""

    def test_cancel(self, queue: Queue) -> None:
        job = queue.enqueue(note)
        after = queue.enqueue(note, depends_on=job)
        other = queue.enqueue(note, depends_on=[queue.enqueue(note), job])
        fetched = queue.fetch_job(job.id)
        assert fetched is not None
        fetched.cancel()
        for each in (job, after, other):
            record = run_of(each.id).cancellation
            assert (record.requested_by, record.reason) == ("rq", "The job has been cancelled.")

    def test_cancel__dependents_go_on(self, queue: Queue) -> None:
        job = queue.enqueue(note)
        after = queue.enqueue(note, depends_on=job)
        job.cancel(enqueue_dependents=True)
        work(queue)
        assert statuses(run_of(job.id), run_of(after.id)) == ["cancelled", "completed"]

    def test_delete(self, queue: Queue) -> None:
        job, kept = queue.enqueue(note), queue.enqueue(note, result_ttl=0)
        job.delete()
        work(queue)
        assert statuses(run_of(job.id), run_of(kept.id)) == ["cancelled", "completed"]
        assert run_of(job.id).cancellation.reason == "The job has been deleted."

    def test_stopped_and_lost(self, queue: Queue) -> None:
        stopped, lost = queue.enqueue(note), queue.enqueue(note)
        stopped.set_status(JobStatus.STOPPED)
        lost.set_status(JobStatus.FAILED)
        assert statuses(run_of(stopped.id), run_of(lost.id)) == ["cancelled", "failed"]
        assert "AbandonedJobError" in run_of(lost.id).failure_reason


def test_plain_jobs_are_as_before(queue: Queue) -> None:
    plain = Queue(queue.name, connection=queue.connection)
    plain.enqueue(note)
    work(plain)
    assert (called, runs()) == ([((), {}, None)], 0)
    assert plain.job_class is Job
