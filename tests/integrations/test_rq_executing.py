"""Executing RQ jobs of a host as runs: with a worker in this process, without one, and twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import transaction

from django_run_cancel.exceptions import RunInProgress
from django_run_cancel.execution import execution
from tests.helpers import make_run, statuses
from tests.integrations.helpers import cancel, run_of
from tests.services import require_package, require_service

require_package("rq")

from redis import Redis
from rq import Callback, Queue
from rq.job import JobStatus, Retry

from django_run_cancel.integrations import rq as integration
from django_run_cancel.integrations.rq import CancellableJob
from tests.integrations.rq_jobs import (
    called,
    cancels_itself,
    fails,
    is_ended_from_outside,
    meets_another,
    new_queue,
    note,
    note_failure,
    note_success,
    publishes_and_runs_it,
    returns_retry,
    runs,
    work,
)

pytestmark = [pytest.mark.broker, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def connection() -> Iterator[Redis]:
    with Redis.from_url(require_service("Redis")) as connection:
        yield connection


@pytest.fixture
def queue(connection: Redis) -> Iterator[Queue]:
    with new_queue(connection) as queue:
        yield queue


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
