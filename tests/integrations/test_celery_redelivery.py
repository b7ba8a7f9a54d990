"""Tasks of Celery that are delivered again, or whose runs end from outside."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.execution import current_run, execution
from django_run_cancel.models import run_rows
from django_run_cancel.testing import wait_until
from tests.helpers import make_run
from tests.services import require_package

require_package("celery")

from celery import Celery
from celery.exceptions import Ignore, Reject

from django_run_cancel.integrations import celery_ends
from tests.integrations.celery_messages import CLASS, Executing
from tests.integrations.helpers import run_of


@pytest.mark.django_db(transaction=True)
class TestExecuting(Executing):
    def test_executed_twice(self, app: Celery) -> None:
        calls = []

        @app.task(shared=False, name="host.task")
        def task() -> None:
            calls.append(1)

        task_id = str(uuid.uuid4())
        self.execute(task, task_id)
        app.backend.store_result(task_id, None, "SUCCESS")
        with pytest.raises(Ignore):
            self.execute(task, task_id, delivery_info={"redelivered": True})
        assert calls == [1]
        assert app.AsyncResult(task_id).state == "SUCCESS"

    def test_published_again_under_its_id(self, app: Celery) -> None:
        """As without the line; the run that has ended stays as it is."""

        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> tuple[str, Any]:
            return self.request.id, current_run()

        task_id = str(uuid.uuid4())
        self.execute(task, task_id)
        ended = run_of(task_id)
        assert self.execute(task, task_id) == (task_id, None)
        assert run_of(task_id).finished_at == ended.finished_at
        cancelled = make_run("cancelled", run_id=str(uuid.uuid4()))
        with pytest.raises(Ignore):
            self.execute(task, cancelled.run_id)

    @pytest.mark.parametrize(
        ("status", "fields", "retries"),
        [
            ("failed", {}, 0),
            ("terminated", {}, 0),
            ("timed_out", {"started_at": timezone.now()}, 0),
            ("failed", {"started_at": timezone.now()}, 1),
        ],
    )
    def test_ended_from_outside_before_it_starts(
        self, app: Celery, status: str, fields: dict[str, Any], retries: int
    ) -> None:
        """Neither the message that waited nor the next try is executed."""

        @app.task(shared=False, name="host.task")
        def task() -> None:
            raise AssertionError

        run = make_run(status, run_id=str(uuid.uuid4()), **fields)
        with pytest.raises(Ignore):
            self.execute(task, run.run_id, retries=retries)

    @pytest.mark.parametrize(
        ("acks_late", "retries", "is_sent"),
        [(True, 0, True), (False, 1, True), (False, 0, False)],
    )
    def test_comes_again_while_the_first_execution_lives(
        self, settings: Any, acks_late: bool, retries: int, is_sent: bool
    ) -> None:
        """It may be the only message that is left of the task."""
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.05
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 600
        app = Celery("again", broker="memory://", task_cls=CLASS, set_as_current=False)
        app.conf.task_default_queue = str(uuid.uuid4())

        @app.task(shared=False, name="host.task", acks_late=acks_late)
        def task(number: int) -> None:
            raise AssertionError

        run = make_run("queued", run_id=str(uuid.uuid4()))
        with execution(run.run_id, heartbeat="process"), pytest.raises(Ignore):
            self.execute(task, run.run_id, 1, retries=retries)
        with app.connection_for_read() as connected:
            queue = connected.SimpleQueue(app.conf.task_default_queue)
            assert queue.qsize() == int(is_sent)
            if is_sent:
                message = queue.get()
                assert message.headers["id"] == run.run_id
                assert message.headers["retries"] == retries
                assert message.headers["eta"]
                assert message.payload[0] == [1]

    def test_ended_from_outside_is_revoked(self, app: Celery) -> None:
        """As by a watchdog: who waits for the result gets one."""

        @app.task(shared=False, name="host.task")
        def task() -> None:
            running = current_run()
            assert running is not None
            run_of(running.run_id).mark_timed_out("Too slow.")
            wait_until(lambda: running.checkpoint(), "a checkpoint to raise")

        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id)
        assert app.AsyncResult(task_id).state == "REVOKED"
        assert run_of(task_id).status == "timed_out"

    def test_taken_over_and_completed_by_another__keeps_its_result(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> None:
            rows = run_rows(run_id=self.request.id)
            rows.update(status="completed", execution_id=uuid.uuid4())
            app.backend.store_result(self.request.id, "of the other", "SUCCESS")
            self.retry()

        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id)
        assert app.AsyncResult(task_id).state == "SUCCESS"

    def test_rejected_and_requeued(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task(requeue: bool) -> None:
            raise Reject("later", requeue=requeue)

        for requeue, status in ((True, "queued"), (False, "failed")):
            task_id = str(uuid.uuid4())
            task.push_request(id=task_id, called_directly=False, is_eager=False)
            with pytest.raises(Reject):
                task(requeue)
            task.pop_request()
            assert run_of(task_id).status == status

    @pytest.mark.parametrize(("is_child", "status"), [(True, "queued"), (False, "failed")])
    def test_process_is_ended(
        self, app: Celery, monkeypatch: pytest.MonkeyPatch, is_child: bool, status: str
    ) -> None:
        """As by ``revoke(terminate=True)``: the worker's main process says what becomes of it."""

        @app.task(shared=False, name="host.task")
        def task() -> None:
            raise SystemExit

        process = SimpleNamespace(daemon=is_child)
        monkeypatch.setattr(celery_ends, "current_process", lambda: process)
        task_id = str(uuid.uuid4())
        with pytest.raises(SystemExit):
            self.execute(task, task_id)
        assert run_of(task_id).status == status
