"""Executing tasks of Celery as runs, as a worker does: parents, retries, replacements, ends."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.models import get_run_model
from tests.helpers import make_run
from tests.services import require_package

require_package("celery")

from celery import Celery, chain, chord, current_app, group
from celery.exceptions import Ignore

from tests.integrations.celery_messages import CLASS, Executing
from tests.integrations.helpers import cancel, run_of


@pytest.mark.django_db(transaction=True)
class TestExecuting(Executing):
    def test_cancelled_is_revoked(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            pytest.fail("It started.")

        run = make_run(run_id=str(uuid.uuid4()))
        cancel(run.run_id)
        with pytest.raises(Ignore):
            self.execute(task, run.run_id)
        assert app.AsyncResult(run.run_id).state == "REVOKED"

    def test_id_that_no_run_can_have(self, app: Celery, caplog: Any) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> int:
            return 1

        assert self.execute(task, "x" * 65) == 1
        assert not get_run_model()._default_manager.exists()
        assert "host.task cannot be cancelled: no run can have the id xxx" in caplog.text

    def test_error_callback_of_a_cancelled_task(self, app: Celery) -> None:
        """It gets the id of the task that publishes it, and is no part of its work."""

        @app.task(shared=False, name="host.task")
        def task(failed_id: str) -> str:
            return failed_id

        parent = make_run("cancelled")
        callback, child = str(uuid.uuid4()), str(uuid.uuid4())
        assert self.execute(task, callback, parent.run_id, parent_id=parent.run_id)
        assert run_of(callback).parent is None
        with pytest.raises(Ignore):
            self.execute(task, child, "other", parent_id=parent.run_id)

    def test_started_before_its_publisher_has_created_the_runs(self, app: Celery) -> None:
        """Its own, those of the links of its chain, and that of the body of its chord."""

        @app.task(shared=False, name="host.task")
        def task() -> None:
            pass

        first, last, body = (str(uuid.uuid4()) for _ in range(3))
        link = {"task": "host.task", "args": (), "kwargs": {}, "options": {"task_id": last}}
        chord = {"task": "host.task", "args": (), "kwargs": {}, "options": {"task_id": body}}
        self.execute(task, first, chain=[link], chord=chord)
        assert run_of(first).status == "completed"
        assert (run_of(last).status, run_of(last).parent) == ("queued", run_of(first))
        assert (run_of(body).status, run_of(first).parent) == ("queued", run_of(body))

    def test_parent_that_is_cancelled_while_its_child_is_created(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            pytest.fail("It started.")

        parent = make_run("running")
        cancel(parent.run_id)
        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id, parent_id=parent.run_id)
        run = run_of(task_id)
        assert (run.parent, run.status, run.stop_state) == (parent, "cancelled", "never_started")
        assert run.cancellation.requested_by == "tests"

    def test_parent_whose_cancellation_has_been_deleted(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            pytest.fail("It started.")

        parent = make_run("running")
        cancel(parent.run_id)
        get_run_model()._default_manager.update(cancellation=None)
        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id, parent_id=parent.run_id)
        run = run_of(task_id)
        assert (run.status, run.cancellation.requested_by) == ("cancelled", "cascade")

    @pytest.mark.parametrize(
        "error", [RunCancelled("tsk_1"), TransitionNotAllowed("tsk_1", "failed", "completed")]
    )
    def test_error_of_another_run(self, app: Celery, error: Exception) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            raise error

        task_id = str(uuid.uuid4())
        with pytest.raises(type(error)):
            self.execute(task, task_id)
        assert run_of(task_id).status == "failed"

    def test_task_that_calls_itself(self, app: Celery) -> None:
        @app.task(shared=False, name="host.walk")
        def walk(depth: int = 2) -> int:
            return 1 + walk(depth - 1) if depth else 0

        task_id = str(uuid.uuid4())
        assert self.execute(walk, task_id) == 2
        assert run_of(task_id).status == "completed"

    def test_retry__with_no_tries_left(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task", bind=True, max_retries=0)
        def task(self: Any) -> None:
            raise self.retry(exc=ValueError("used up"))

        task_id = str(uuid.uuid4())
        with pytest.raises(ValueError, match="used up"):
            self.execute(task, task_id, retries=0)
        assert run_of(task_id).status == "failed"

    @pytest.mark.parametrize(
        ("kind", "status"),
        [
            ("task", "queued"),
            ("chain", "queued"),
            ("chord", "queued"),
            ("group", "queued"),
            ("other", "completed"),
        ],
    )
    def test_replaced(self, kind: str, status: str, settings: Any) -> None:
        """The run is that of the task with the same id; one that is not tracked ends it."""
        settings.RUN_CANCEL_TRACK = ["host.*"]
        before = current_app._get_current_object()
        app = Celery("replaced", backend="cache+memory://", broker="memory://", task_cls=CLASS)

        @app.task(shared=False, name="host.add")
        def add(*numbers: int) -> None:
            pass

        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> None:
            replacements = {
                "task": add.s(1),
                "chain": chain(add.s(1), add.s(2)),
                "chord": chord([add.s(1)], add.s()),
                "group": group(add.s(1), add.s(2)),
                "other": app.signature("other.add"),
            }
            raise self.replace(replacements[kind])

        task_id = str(uuid.uuid4())
        try:
            with pytest.raises(Ignore, match="Replaced"):
                self.execute(task, task_id)
        finally:
            before.set_current()
        assert run_of(task_id).status == status

    def test_replaced__cannot_be_sent(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> None:
            with pytest.raises(Exception, match="signature replacing"):
                self.replace(self.si().set(chord=self.si()))
            app.send_task = None  # type: ignore[method-assign]
            raise self.replace(self.si())

        task_id = str(uuid.uuid4())
        with pytest.raises(TypeError):
            self.execute(task, task_id)
        assert run_of(task_id).status == "failed"

    def test_ignored_is_no_failure(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            raise Ignore

        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id)
        assert run_of(task_id).status == "completed"
