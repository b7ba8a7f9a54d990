"""Executing Huey tasks of a host, with a storage in memory: how their runs end."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db import OperationalError, transaction

from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.execution import current_run
from django_run_cancel.models import get_run_model
from tests.helpers import make_run
from tests.services import require_package

require_package("huey")

from huey import crontab
from huey.exceptions import CancelExecution, RetryTask, TaskException

from django_run_cancel.integrations import huey as integration
from django_run_cancel.integrations.huey import cancellable
from tests.integrations.helpers import cancel, has_runs, has_status, run_of
from tests.integrations.huey_memory import Published


@pytest.fixture
def huey() -> Published:
    return cancellable(Published("published"))


@pytest.mark.django_db(transaction=True)
class TestExecuting:
    def test_failure_ends_the_pipeline(self, huey: Published) -> None:
        @huey.task(name="fails")
        def fails() -> None:
            raise ValueError("wrong")

        task = huey.task(name="task")(lambda: pytest.fail("It started."))
        results = huey.enqueue(fails.s().then(task).then(task))._results
        huey.work()
        assert [run_of(result.id).status for result in results] == ["failed"] * 3
        assert run_of(results[2].id).failure_reason == "ValueError: wrong"

    @pytest.mark.parametrize(
        ("error", "retries", "status"),
        [
            (ValueError, 0, "failed"),
            (ValueError, 1, "queued"),
            (RetryTask, 0, "queued"),
            (lambda: CancelExecution(retry=True), 0, "queued"),
            (lambda: CancelExecution(retry=False), 1, "failed"),
            (CancelExecution, 1, "queued"),
            (CancelExecution, 0, "failed"),
            (KeyboardInterrupt, 1, "failed"),
        ],
    )
    def test_retry(self, huey: Published, error: Any, retries: int, status: str) -> None:
        tried = []

        @huey.task(name="task", retries=retries)
        def task() -> str:
            tried.append(1)
            if len(tried) == 1:
                raise error()
            return "second"

        link = huey.task(name="link")(lambda text: text)
        first, second = huey.enqueue(task.s().then(link))._results
        huey.execute(huey.dequeue())
        assert (run_of(first.id).status, run_of(second.id).status) == (
            status,
            "queued" if status == "queued" else "failed",
        )
        huey.work()
        if status == "queued":
            assert (tried, second.get()) == ([1, 1], "second")
            assert has_status(first.id, "completed")

    def test_rate_limit(self, huey: Published) -> None:
        if not integration.RATE_LIMITED:
            pytest.skip("Huey 2 has no rate limits.")
        limited = {retry: self.limited(huey, retry) for retry in (False, True)}
        statuses = {retry: run_of(task_id).status for retry, task_id in limited.items()}
        assert statuses == {False: "failed", True: "queued"}

    def limited(self, huey: Any, retry: bool) -> str:
        @huey.task(name=f"limited_{retry}")
        @huey.rate_limit(f"limit_{retry}", limit=0, per=3600, retry=retry)
        def limited() -> None:
            pytest.fail("It started.")

        task_id: str = limited().id
        huey.execute(huey.dequeue())
        return task_id

    def test_cancelled_between_two_tries(self, huey: Published) -> None:
        tried = []

        @huey.task(name="task", retries=5)
        def task() -> None:
            tried.append(1)
            raise ValueError("wrong")

        result = task()
        huey.execute(huey.dequeue())
        cancel(result.id)
        huey.work()
        assert tried == [1]
        with pytest.raises(TaskException, match="has been cancelled"):
            result.get()

    def test_same_id_again(self, huey: Published) -> None:
        """Huey delivers a task once: whoever enqueues its id again wants it executed again."""
        handled: list[Any] = []

        @huey.task(name="fails", retries=2)
        def fails() -> None:
            raise ValueError("wrong")

        @huey.task(name="handler")
        def handler(*args: Any) -> None:
            handled.append(current_run() is not None)
            if len(handled) == 2:
                raise RunCancelled("tsk_1")

        failing = fails.s().error(handler)
        huey.enqueue(failing)
        huey.work()
        assert handled == [True, False, False]
        assert run_of(failing.on_error.id).status == "completed"

    @pytest.mark.parametrize("task_id", ["x" * 65, "x\0", 7])
    def test_id_that_no_run_can_have(self, huey: Published, task_id: Any, caplog: Any) -> None:
        calls: list[int] = []
        note = huey.task(name="note")(calls.append)
        fails = huey.task(name="fails")(int)
        alone, link = note.s(1), note.s()
        alone.id = link.id = task_id
        huey.enqueue(alone)
        head = fails.s("no number")
        head.on_complete = link
        huey.enqueue(head)
        huey.work()
        assert calls == [1]
        assert [run.run_id for run in get_run_model()._default_manager.all()] == [head.id]
        assert run_of(head.id).status == "failed"
        assert "could not be written" not in caplog.text

    @pytest.mark.parametrize(
        "error", [RunCancelled("tsk_1"), TransitionNotAllowed("tsk_1", "failed", "completed")]
    )
    def test_error_of_another_run(self, huey: Published, error: Exception) -> None:
        @huey.task(name="task")
        def task() -> None:
            raise error

        result = task()
        huey.work()
        assert run_of(result.id).status == "failed"
        with pytest.raises(TaskException, match="tsk_1"):
            result.get()

    def test_revoked__never_published_here(self, huey: Published) -> None:
        """A task without a run, such as one of a publisher that has rolled back."""
        task = huey.task(name="task")(lambda: pytest.fail("It started."))
        with transaction.atomic():
            result = task()
            transaction.set_rollback(True)
        result.revoke()
        huey.work()
        assert not has_runs()
        assert result.get() is None

    def test_revoked_while_another_execution_runs(self, huey: Published) -> None:
        task = huey.task(name="task")(lambda: pytest.fail("It started.")).s()
        make_run("running", run_id=task.id)
        huey.enqueue(task)
        huey.revoke(task)
        huey.work()
        assert run_of(task.id).status == "running"

    def test_expired(self, huey: Published) -> None:
        task = huey.task(name="task")(lambda: pytest.fail("It started."))
        result = huey.enqueue(task.s(expires=datetime.datetime(2000, 1, 1)))
        huey.work()
        assert run_of(result.id).cancellation.reason == "Huey dropped the task: expired."

    def test_hook_of_the_host_cancels(self, huey: Published) -> None:
        @huey.pre_execute()
        def refuse(task: Any) -> None:
            raise CancelExecution

        result = huey.task(name="task")(lambda: pytest.fail("It started."))()
        huey.work()
        assert run_of(result.id).cancellation.reason == "Huey dropped the task: canceled."

    @pytest.mark.parametrize(
        ("kind", "results", "stored"),
        [("task", True, 2), ("task", False, 0), ("periodic_task", True, 0)],
    )
    def test_cancelled_and_dropped(self, kind: str, results: bool, stored: int) -> None:
        """Who waits for the result of the task, or of its pipeline, is told."""
        huey = cancellable(Published("published", results=results))
        arguments = [crontab()] if kind == "periodic_task" else []
        task = getattr(huey, kind)(*arguments, name="task")(lambda: None)
        pipeline = task.s().then(task)
        huey.enqueue(pipeline)
        cancel(pipeline.id)
        huey.revoke(pipeline, revoke_once=True)
        huey.work()
        assert huey.result_count() == stored
        assert run_of(pipeline.id).cancellation.requested_by == "tests"

    def test_run_cannot_be_cancelled(
        self, huey: Published, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise OperationalError("refused")

        result = huey.task(name="task")(lambda: None)()
        monkeypatch.setattr(integration, "cancel_runs", refuse)
        result.revoke()
        huey.work()
        assert f"The run of task {result.id} could not be cancelled." in caplog.text
