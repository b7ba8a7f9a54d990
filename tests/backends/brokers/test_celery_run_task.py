"""``RunTask``, the task of Celery that executes a run, called in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from django_run_cancel.cancellation import service
from django_run_cancel.testing.jobs import TRACE_FOLDER
from tests.helpers import make_run, statuses
from tests.services import require_package

require_package("celery")

from celery.exceptions import Ignore, Reject, Retry

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.integrations.celery import RunTask
from tests.backends.brokers import celery_jobs


@pytest.mark.django_db(transaction=True)
class TestRunTask:
    before_retry: Any = staticmethod(lambda run: None)

    def call(self, run: Any) -> None:
        celery_jobs.make_app("local", "memory://").tasks[celery_jobs.TASK](run.run_id)

    def test_executes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(TRACE_FOLDER, str(tmp_path))
        run = make_run(title="returns")
        self.call(run)
        assert statuses(run) == ["completed"]

    def test_cancelled(self) -> None:
        run = make_run()
        service.cancel_runs([run.run_id], requested_by="tests")
        with pytest.raises(Ignore):
            self.call(run)

    def retrying(self, **options: Any) -> Any:
        """Return a task on a broker that is out of reach."""
        app = celery_jobs.make_app("local", "redis://127.0.0.1:1/0")
        app.conf.broker_transport_options = {"max_retries": 0}

        @app.task(base=RunTask, shared=False, bind=True, **options)
        def work(task: Any, run: Any) -> None:
            self.before_retry(run)
            raise task.retry(countdown=0, exc=OSError("the first"), retry=False)

        return work

    def as_in_a_worker(self, task: Any, run: Any) -> None:
        task.push_request(
            id="x", args=[run.run_id], kwargs={}, delivery_info={}, called_directly=False
        )
        try:
            task(run.run_id)
        finally:
            task.pop_request()

    def test_tries_are_used_up(self) -> None:
        run = make_run()
        with pytest.raises(OSError, match="the first"):
            self.as_in_a_worker(self.retrying(max_retries=0), run)
        run.refresh_from_db()
        assert (run.status, run.failure_reason) == ("failed", "OSError: the first")

    def test_broker_is_away_when_it_is_to_be_tried_again(self) -> None:
        """Nobody would ever try again: the run has failed."""
        run = make_run()
        with pytest.raises(Reject):
            self.as_in_a_worker(self.retrying(), run)
        assert statuses(run) == ["failed"]

    def test_cancelled_when_it_is_to_be_tried_again(self) -> None:
        run = make_run()
        self.before_retry = lambda run: service.cancel_runs([run.run_id], requested_by="tests")
        with pytest.raises(Ignore):
            self.as_in_a_worker(self.retrying(), run)
        run.refresh_from_db()
        assert (run.status, run.stop_state) == ("cancelled", "acknowledged")

    def test_in_a_transaction_that_is_broken(self) -> None:
        """The next try is sent, and leaving the block queues the run."""
        run = make_run()
        app = celery_jobs.make_app("local", "memory://")

        @app.task(base=RunTask, shared=False, bind=True)
        def work(task: Any, held: Any) -> None:
            with transaction.atomic():
                try:
                    make_run(run_id=run.run_id)
                except IntegrityError as error:
                    raise task.retry(exc=error, countdown=0) from error

        with pytest.raises(Retry):
            self.as_in_a_worker(work, run)
        assert statuses(run) == ["queued"]

    def test_task_that_calls_itself_for_another_run(self) -> None:
        run, other = make_run(), make_run()
        app = celery_jobs.make_app("local", "memory://")

        @app.task(base=RunTask, shared=False, bind=True)
        def work(task: Any, held: Any) -> None:
            if held.run_id == run.run_id:
                task(other.run_id)
                raise task.retry(countdown=0)

        with pytest.raises(Retry):
            self.as_in_a_worker(work, run)
        assert statuses(run, other) == ["queued", "completed"]

    def test_error_of_another_run(self) -> None:
        run = make_run()
        app = celery_jobs.make_app("local", "memory://")

        @app.task(base=RunTask, shared=False)
        def work(held: Any) -> None:
            raise RunCancelled("tsk_1")

        with pytest.raises(RunCancelled):
            self.as_in_a_worker(work, run)
        assert statuses(run) == ["failed"]

    def test_tried_again_before_it_has_started(self) -> None:
        run = make_run()
        app = celery_jobs.make_app("local", "memory://")

        @app.task(base=RunTask, shared=False, bind=True)
        def work(task: Any, held: Any) -> None:
            pytest.fail("It started.")

        work.push_request(
            id="x", args=[run.run_id], kwargs={}, delivery_info={}, called_directly=False
        )
        with pytest.raises(Retry):
            work.retry(countdown=0)
        work.pop_request()
        assert statuses(run) == ["queued"]

    def test_called_directly(self) -> None:
        run = make_run()
        with pytest.raises(OSError, match="the first"):
            self.retrying()(run.run_id)
        assert statuses(run) == ["failed"]

    def test_eager(self) -> None:
        """As in tests of hosts: it is tried again at once, in the same process."""
        runs = [make_run(), make_run()]
        app = celery_jobs.make_app("local", "memory://")
        assert app.tasks[celery_jobs.QUICK].apply([runs[0].run_id]).successful()
        assert not self.retrying(max_retries=2).apply([runs[1].run_id]).successful()
        assert statuses(*runs) == ["completed", "failed"]

    def test_running_elsewhere(self) -> None:
        run = make_run("running")
        with pytest.raises(Ignore):
            self.call(run)
        assert statuses(run) == ["running"]
