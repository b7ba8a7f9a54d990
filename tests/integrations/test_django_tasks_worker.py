"""Tasks of Django Tasks as runs, with a real worker of django-tasks-db."""

from __future__ import annotations

import importlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.backends import StopOutcome, StopRequest, TaskCall, get_backend
from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from django_run_cancel.testing.conformance import Harness
from tests.helpers import make_run, statuses
from tests.services import require_package

require_package("django_tasks_db")

from django_tasks_db.models import DBTaskResult

from tests.integrations import django_tasks_host
from tests.integrations.helpers import cancel, has_status, run_of

CANCELLABLE = "django_run_cancel.integrations.django_tasks.CancellableDatabaseBackend"
HOST = django_tasks_host.__name__


class HostHarness(Harness):
    backend = "django_run_cancel.backends.django_tasks.DjangoTasksBackend"
    ready = "Starting worker"
    tasks_backend = CANCELLABLE

    def environment(self) -> dict[str, str]:
        return {"TASKS_BACKEND": self.tasks_backend}

    def command(self) -> list[str]:
        return ["-m", "django", "db_worker", "--interval=0.1", "--no-startup-delay", "--no-reload"]

    def traced(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def enqueue(self, name: str, *args: Any, **options: Any) -> Any:
        task = getattr(django_tasks_host, name)
        return task.using(**options).enqueue(*args)


class UntrackedHarness(HostHarness):
    tasks_backend = "django_tasks_db.DatabaseBackend"


@pytest.fixture
def host(
    request: pytest.FixtureRequest, transactional_db: None, tmp_path: Path, settings: Any
) -> Iterator[HostHarness]:
    harness: HostHarness = getattr(request, "param", HostHarness)(tmp_path, None, None)
    settings.TASKS = {"default": {"BACKEND": harness.tasks_backend, "QUEUES": []}}
    settings.RUN_CANCEL_BACKENDS = {"tasks": {"BACKEND": harness.backend}}
    importlib.reload(django_tasks_host)  # its tasks are made by the backend
    yield harness
    harness.kill()


def finished(result: Any) -> Any:
    def is_finished() -> bool:
        result.refresh()
        return bool(result.is_finished)

    wait_until(is_finished, "the result")
    return result


def error_of(result: Any) -> str:
    return str(finished(result).errors[0].exception_class_path)


@pytest.mark.parametrize("host", [HostHarness, UntrackedHarness], indirect=True)
def test_results_are_as_before(host: HostHarness) -> None:
    """With the one line and without."""
    host.online()
    added = host.enqueue("add", 1, 4, priority=3)
    coroutine = host.enqueue("aadd", 5)
    later = host.enqueue("add", 2, run_after=timezone.now() + timedelta(seconds=0.5))
    attempt = host.enqueue("attempt", "first")
    failed = host.enqueue("fails")
    assert finished(added).return_value == 5
    assert finished(coroutine).return_value == 7
    assert finished(later).return_value == 4
    assert finished(attempt).return_value == f"first 1 {attempt.id}"
    assert error_of(failed) == "builtins.ValueError"
    table = {
        "add RUNNING": 2,
        "add SUCCESSFUL": 2,
        "aadd RUNNING": 1,
        "aadd SUCCESSFUL": 1,
        "attempt RUNNING": 1,
        "attempt SUCCESSFUL": 1,
        "fails RUNNING": 1,
        "fails FAILED": 1,
    }
    wait_until(lambda: Counter(host.traced("table")) == table, "the signals")
    if host.tasks_backend != CANCELLABLE:
        assert not get_run_model()._default_manager.exists()
        return
    for result in (added, coroutine, later, attempt):
        assert run_of(result.id).status == "completed"
    run = run_of(failed.id)
    assert (run.title, run.status) == (f"{HOST}.fails", "failed")
    assert run.failure_reason == "ValueError: wrong"


def test_cancelled_while_it_waits(host: HostHarness) -> None:
    """One is dropped by the delivery worker, the other is refused when it starts."""
    result, other = host.enqueue("works", "waits"), host.enqueue("works", "waits")
    run = run_of(result.id)
    assert (run.status, run.backend, run.external_id) == ("queued", "tasks", result.id)
    cancel(result.id)
    deliver_due()
    assert error_of(result) == "django_run_cancel.exceptions.RunCancelled"
    cancel(other.id)
    host.online()
    assert error_of(other) == "django_run_cancel.exceptions.RunCancelled"
    assert host.traced("waits") == []
    assert [run_of(each.id).stop_state for each in (result, other)] == ["never_started"] * 2
    wait_until(lambda: host.traced("table")[-1:] == ["works FAILED"], "the signal")
    assert "Traceback" not in host.log.read_text()


def test_cancelled_deep_in_a_library(host: HostHarness) -> None:
    host.online()
    result = host.enqueue("works", "works")
    wait_until(lambda: host.traced("works"), "the start")
    backend = get_backend("tasks")
    request = StopRequest(result.id, result.id, True)
    assert backend.stop([request], force=True) == {result.id: StopOutcome.UNSUPPORTED}
    cancel(result.id)
    assert error_of(result) == "django_run_cancel.exceptions.RunCancelled"
    assert len(host.traced("works")) == 1
    assert run_of(result.id).stop_state == "acknowledged"
    wait_until(lambda: "works FAILED" in host.traced("table"), "the signal")
    assert "Traceback" not in host.log.read_text()


def test_coroutine__stopped_where_it_waits(host: HostHarness) -> None:
    host.online()
    result = host.enqueue("waits", "waits")
    wait_until(lambda: host.traced("waits"), "the start")
    cancel(result.id)
    assert error_of(result) == "django_run_cancel.exceptions.RunCancelled"
    assert host.traced("waits") == ["started", "left"]
    assert run_of(result.id).stop_state == "acknowledged"


@pytest.mark.parametrize("name", ["parent", "aparent"])
def test_children_go_along(host: HostHarness, name: str) -> None:
    host.online()
    result = host.enqueue(name, "child")
    child_id = finished(result).return_value
    wait_until(lambda: host.traced("child"), "the start of the child")
    assert run_of(child_id).parent == run_of(result.id)


def test_made_ready_again_because_its_worker_was_killed(host: HostHarness) -> None:
    """It runs again once the heartbeat of the dead execution is old enough."""
    host.online()
    result = host.enqueue("works", "killed")
    wait_until(lambda: host.traced("killed"), "the start")
    os.kill(int(host.traced("killed")[0].split()[2]), signal.SIGKILL)
    wait_until(lambda: not is_up(host), "the end of the worker")
    DBTaskResult.objects.filter(pk=result.id).update(status="READY")
    host.online()
    wait_until(lambda: len(host.traced("killed")) == 2, "the second start")
    assert run_of(result.id).status == "running"
    cancel(result.id)
    assert error_of(result) == "django_run_cancel.exceptions.RunCancelled"


def is_up(host: HostHarness) -> bool:
    assert host._worker is not None
    return host._worker.poll() is None


def test_made_ready_again_after_its_end(host: HostHarness) -> None:
    """As the host wants it, and without a run."""
    host.online()
    result = host.enqueue("attempt", "again")
    finished(result)
    DBTaskResult.objects.filter(pk=result.id).update(status="READY")
    wait_until(lambda: DBTaskResult.objects.get(pk=result.id).status == "SUCCESSFUL", "the end")
    result.refresh()
    assert result.return_value == f"again 2 {result.id}"
    assert run_of(result.id).status == "completed"


def test_dispatched__is_no_run_of_its_own(host: HostHarness) -> None:
    host.online()
    backend = get_backend("tasks")
    run = make_run(backend="tasks")
    run.external_id = backend.new_external_id(run)
    run.save(update_fields=["external_id"])
    backend.dispatch(run, TaskCall(f"{HOST}.takes_run_id"))
    wait_until(lambda: has_status(run.run_id, "completed"), "the end")
    assert get_run_model()._default_manager.count() == 1
    assert statuses(run) == ["completed"]
