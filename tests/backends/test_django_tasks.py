from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, connections

from tests.backends.services import require_package

require_package("django_tasks_db")

from django_tasks_db.compat import Task
from django_tasks_db.models import DBTaskResult

from django_run_cancel.backends.base import BackendError, StopOutcome, StopRequest
from django_run_cancel.backends.django_tasks import DjangoTasksBackend
from django_run_cancel.exceptions import RunCancelled
from tests.backends.contract import BackendContract, Harness, wait_until
from tests.helpers import IS_SQLITE, make_run, rows_locked


class DjangoTasks(Harness):
    backend = "django_run_cancel.backends.django_tasks.DjangoTasksBackend"
    ready = "Starting worker"

    def options(self) -> dict[str, Any]:
        return {"TASK": "tests.backends.django_tasks_jobs.crawl"}

    def command(self) -> list[str]:
        return ["-m", "django", "db_worker", "--interval=0.1", "--no-startup-delay", "--no-reload"]


class ToElsewhere:
    """Routes the tasks to a database that cannot be used."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "elsewhere" if model is DBTaskResult else None


class TestDjangoTasks(BackendContract):
    harness_class = DjangoTasks

    def test_queued__taken_out(self, harness: Harness) -> None:
        harness.kill()
        (run,) = self.send("short")
        self.cancel(run)
        assert self.told(run) == [StopOutcome.STOPPED]
        result = DBTaskResult.objects.get(pk=run.external_id).task_result
        assert result.status == "FAILED"
        assert result.errors[0].exception_class is RunCancelled

    def test_finished__stopped_and_running__unsupported(self, harness: Harness) -> None:
        harness.online()
        run = self.started("asks")
        assert self.told(run, running=True) == [StopOutcome.UNSUPPORTED]
        self.cancel(run)
        wait_until(lambda: self.told(run) == [StopOutcome.STOPPED], "the end of the task", 5)

    @pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
    def test_task_that_somebody_has_locked__keeps_nobody_waiting(self, harness: Harness) -> None:
        harness.kill()
        locked, other = self.send("short", 2)
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
        backend = DjangoTasksBackend("elsewhere", self.shared.options())
        run = make_run(external_id=str(uuid.uuid4()))
        request = StopRequest(run.run_id, run.external_id, False)
        (outcome,) = backend.stop([request], force=False).values()
        assert isinstance(outcome, Exception)
        with pytest.raises(BackendError):
            backend.dispatch(run)
        assert [message.id for message in backend.check(deploy=True)] == ["django_run_cancel.W005"]

    def test_tasks_that_are_kept_elsewhere(self, settings: Any) -> None:
        package = Task.__module__.partition(".base")[0]
        settings.TASKS = {"default": {"BACKEND": f"{package}.backends.dummy.DummyBackend"}}
        assert [message.id for message in self.backend.check()] == ["django_run_cancel.E011"]
