from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.apps import apps
from django.db import connection, connections

from tests.services import require_package

require_package("django_tasks_db")

from django_tasks_db.compat import BaseTaskBackend, Task
from django_tasks_db.models import DBTaskResult

from django_run_cancel.backends import StopOutcome, StopRequest, TaskCall
from django_run_cancel.backends.base import BackendError
from django_run_cancel.backends.django_tasks import DjangoTasksBackend
from django_run_cancel.exceptions import RunCancelled, UnknownTask
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import jobs, wait_until
from django_run_cancel.testing.conformance import BackendConformance, Harness
from tests.helpers import IS_SQLITE, make_run, rows_locked

JOBS = "tests.backends.django_tasks_jobs"


class DjangoTasks(Harness):
    backend = "django_run_cancel.backends.django_tasks.DjangoTasksBackend"
    ready = "Starting worker"

    def options(self) -> dict[str, Any]:
        return {"TASK": f"{JOBS}.crawl"}

    def command(self) -> list[str]:
        return ["-m", "django", "db_worker", "--interval=0.1", "--no-startup-delay", "--no-reload"]


class Elsewhere(BaseTaskBackend):
    """Another queue than that of django-tasks-db."""

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError


class ToElsewhere:
    """Routes the tasks to a database that cannot be used."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "elsewhere" if model is DBTaskResult else None


class TestDjangoTasks(BackendConformance):
    harness_class = DjangoTasks

    def test_queued__taken_out(self, harness: Harness) -> None:
        harness.kill()
        (run,) = self.send("returns")
        self.cancel(run)
        assert self.told(run) == [StopOutcome.STOPPED]
        result = DBTaskResult.objects.get(pk=run.external_id).task_result
        assert result.status == "FAILED"
        assert result.errors[0].exception_class is RunCancelled

    def test_finished__stopped_and_running__unsupported(self, harness: Harness) -> None:
        harness.online()
        run = self.started("checks")
        assert self.told(run, running=True) == [StopOutcome.UNSUPPORTED]
        self.cancel(run)
        wait_until(lambda: self.told(run) == [StopOutcome.STOPPED], "the end of the task")

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
    def test_task_that_somebody_has_locked__keeps_nobody_waiting(self, harness: Harness) -> None:
        harness.kill()
        locked, other = self.send("returns", 2)
        pk = DBTaskResult._meta.pk.get_db_prep_value(UUID(locked.external_id), connection)
        with rows_locked(DBTaskResult._meta.db_table, "id", pk):
            outcomes = self.stop(locked, other)
        assert "locked" in str(outcomes[0])
        assert outcomes[1] is StopOutcome.STOPPED
        assert self.told(locked) == [StopOutcome.STOPPED]

    def test_id_of_another_executor(self) -> None:
        assert self.told(make_run(external_id="not a UUID")) == [StopOutcome.TOLD]

    def test_a_database_of_its_own_that_is_down(
        self, monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path
    ) -> None:
        empty = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "empty")}
        filled = connections.configure_settings({"default": empty})["default"]
        monkeypatch.setitem(connections.databases, "elsewhere", filled)
        settings.DATABASE_ROUTERS = [ToElsewhere()]
        backend = DjangoTasksBackend("elsewhere", self.executor.options())
        run = make_run(external_id=str(uuid.uuid4()))
        request = StopRequest(run.run_id, run.external_id, False)
        (outcome,) = backend.stop([request], force=False).values()
        assert isinstance(outcome, Exception)
        with pytest.raises(BackendError):
            backend.dispatch(run)
        assert [message.id for message in backend.check(deploy=True)] == ["django_run_cancel.W005"]

    def test_tasks_that_are_kept_elsewhere(self, settings: Any) -> None:
        package = Task.__module__.partition(".base")[0]
        settings.TASKS = {"default": {"BACKEND": f"{__name__}.Elsewhere"}}
        assert [found.id for found in self.backend.check()] == ["django_run_cancel.E011"]
        settings.TASKS = {"default": {"BACKEND": f"{package}.backends.dummy.DummyBackend"}}
        assert self.backend.check() == []
        found = self.backend.check(deploy=True)
        assert [message.id for message in found] == ["django_run_cancel.W011"]

    def test_development__runs_at_once(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = Task.__module__.partition(".base")[0]
        settings.TASKS = {"default": {"BACKEND": f"{package}.backends.immediate.ImmediateBackend"}}
        monkeypatch.setenv(jobs.TRACE_FOLDER, str(self.executor.folder))
        monkeypatch.setattr(apps, "is_installed", lambda name: name != "django_tasks_db")
        backend = DjangoTasksBackend("development", {})
        run = self.make_run(external_id=str(uuid.uuid4()))
        backend.dispatch(run, TaskCall(f"{JOBS}.crawl_page", ["/a"]))
        assert self.statuses(run) == [RunStatus.COMPLETED]
        request = StopRequest(run.run_id, run.external_id, False)
        outcomes = backend.stop([request], force=False)
        assert outcomes == {run.external_id: StopOutcome.UNSUPPORTED}

    def test_one_alias_for_many_tasks(self, harness: Harness) -> None:
        harness.online()
        backend = DjangoTasksBackend("many", {})
        assert backend.check() == []
        run = self.make_run(external_id=str(uuid.uuid4()))
        call = TaskCall(f"{JOBS}.crawl_page", ["/a"], options={"priority": 5})
        backend.check_call(call)
        backend.dispatch(run, call)
        self.wait_for(RunStatus.COMPLETED, run)
        with pytest.raises(TypeError, match="Name a task"):
            backend.check_call(TaskCall())
        with pytest.raises(UnknownTask):
            backend.check_call(TaskCall(f"{JOBS}.jobs"))
        with pytest.raises(UnknownTask):
            backend.check_call(TaskCall(f"{JOBS}.gone"))
        wrong = DjangoTasksBackend("wrong", {"TASK": f"{JOBS}.gone"})
        assert [found.id for found in wrong.check()] == ["django_run_cancel.E015"]
