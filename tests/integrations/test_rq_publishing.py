"""Publishing RQ jobs of a host as runs, and what a host does to jobs by the means of RQ."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from django_run_cancel.backends import TaskCall
from django_run_cancel.execution import execution
from tests.helpers import make_run, statuses
from tests.integrations.helpers import run_of
from tests.services import require_package, require_service

require_package("rq")

from redis import Redis
from redis import exceptions as exceptions_of_redis
from redis.client import Pipeline
from rq import Callback, Queue, exceptions
from rq.job import Job, JobStatus

from django_run_cancel.backends.rq import RQBackend
from django_run_cancel.integrations import rq as integration
from django_run_cancel.integrations.rq import CancellableJob
from tests.integrations.rq_jobs import called, fails, new_queue, note, note_success, runs, work

pytestmark = [pytest.mark.broker, pytest.mark.django_db(transaction=True)]

PATH = "django_run_cancel.backends.rq.RQBackend"


@pytest.fixture
def connection() -> Iterator[Redis]:
    with Redis.from_url(require_service("Redis")) as connection:
        yield connection


@pytest.fixture
def queue(connection: Redis) -> Iterator[Queue]:
    with new_queue(connection) as queue:
        yield queue


class Importer:
    @classmethod
    def handle(cls) -> None: ...

    def run(self) -> None: ...


class TestPublishing:
    def test_run_waits_for_its_job(self, queue: Queue, settings: Any) -> None:
        settings.RUN_CANCEL_BACKENDS = {"rq": {"BACKEND": PATH, "OPTIONS": {"URL": "redis://x"}}}
        with transaction.atomic():
            job = queue.enqueue(note, 1, on_success=Callback(note_success))
            assert runs() == 0
        run = run_of(job.id)
        assert (run.status, run.title, run.parent) == ("queued", f"{note.__module__}.note", None)
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
