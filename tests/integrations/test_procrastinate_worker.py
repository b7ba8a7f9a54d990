"""Procrastinate tasks of a host as runs, with a real worker on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction

from django_run_cancel.backends import StopOutcome, StopRequest, TaskCall, get_backend
from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from django_run_cancel.testing.conformance import Harness, TrackedConformance
from tests.helpers import IS_POSTGRESQL, make_run
from tests.services import require_package

require_package("procrastinate")
if not IS_POSTGRESQL:
    pytest.skip("Procrastinate needs PostgreSQL", allow_module_level=True)

from procrastinate.contrib.django import app

from django_run_cancel.integrations.procrastinate import cancellable
from tests.integrations import procrastinate_host
from tests.integrations.helpers import cancel, has_status, run_of

CANCELLABLE = "django_run_cancel.integrations.procrastinate.cancellable"


class HostHarness(Harness):
    backend = "django_run_cancel.backends.procrastinate.ProcrastinateBackend"
    ready = "Launching a worker"
    on_app_ready = CANCELLABLE
    concurrency = 2

    def environment(self) -> dict[str, str]:
        return {"PROCRASTINATE_ON_APP_READY": self.on_app_ready} if self.on_app_ready else {}

    def options(self) -> dict[str, Any]:
        return {}

    def command(self) -> list[str]:
        options = [f"--concurrency={self.concurrency}"]
        options += ["--fetch-job-polling-interval=0.2", "--abort-job-polling-interval=0.2"]
        return ["-m", "django", "procrastinate", "worker", *options]

    def publish(self, title: str) -> str:
        return run_id(self.defer("job", title=title))

    def traced(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def defer(self, name: str, options: Any = None, /, **kwargs: Any) -> int:
        task = getattr(procrastinate_host, name)
        job_id: int = task.configure(**(options or {})).defer(**kwargs)
        return job_id


class UntrackedHarness(HostHarness):
    on_app_ready = ""


@pytest.fixture
def host(
    request: pytest.FixtureRequest, transactional_db: None, tmp_path: Path, settings: Any
) -> Iterator[HostHarness]:
    harness: HostHarness = getattr(request, "param", HostHarness)(tmp_path, None, None)
    settings.RUN_CANCEL_BACKENDS = {"jobs": {"BACKEND": harness.backend}}
    with app_of(harness):
        yield harness
        harness.kill()


@contextmanager
def app_of(harness: HostHarness) -> Iterator[None]:
    """Let the app have no jobs, and be cancellable for a while if that of the harness is."""
    with connection.cursor() as cursor:  # Django does not empty the tables of unmanaged models
        cursor.execute("TRUNCATE procrastinate_jobs CASCADE")
    attributes = vars(app.job_manager).copy()
    if harness.on_app_ready:
        cancellable(app)
    try:
        yield
    finally:
        vars(app.job_manager).clear()
        vars(app.job_manager).update(attributes)


class OneAtATime(HostHarness):
    concurrency = 1

    def options(self) -> dict[str, Any]:
        return {"TASK": f"{procrastinate_host.__name__}.job"}  # no coroutine, which it could stop


class TestTracked(TrackedConformance):
    harness_class = OneAtATime

    @pytest.fixture(autouse=True)
    def _app(self, harness: HostHarness) -> Iterator[None]:
        with app_of(harness):
            yield


def status(job_id: int) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT status::text FROM procrastinate_jobs WHERE id = %s", [job_id])
        return str(cursor.fetchone()[0])


def job_ends(job_id: int, expected: str) -> None:
    wait_until(lambda: status(job_id) == expected, f"the job to be {expected}")


def run_id(job_id: int) -> str:
    return f"procrastinate-{job_id}"


@pytest.mark.parametrize("host", [HostHarness, UntrackedHarness], indirect=True)
def test_results_are_as_before(host: HostHarness) -> None:
    """With the one line and without."""
    host.online()
    added = host.defer("add", {"priority": 1}, x=1, y=4)
    later = host.defer("aadd", {"schedule_in": {"seconds": 1}}, x=5)
    by_name = app.configure_task("host.add").defer(x=8)
    retried = host.defer("fails_first", name="retried")
    failed = host.defer("fails")
    for job_id in (added, later, by_name, retried):
        job_ends(job_id, "succeeded")
    job_ends(failed, "failed")
    assert sorted(host.traced("results")) == ["aadd 7", "add 10", "add 5", "retried 0", "retried 1"]
    if not host.on_app_ready:
        assert not get_run_model()._default_manager.exists()
        return
    for job_id in (added, later, by_name, retried):
        assert run_of(run_id(job_id)).status == "completed"
    assert run_of(run_id(failed)).failure_reason == "ValueError: wrong"


def test_cancelled_while_it_waits(host: HostHarness) -> None:
    """One is dropped by the delivery worker, the other is refused when it starts."""
    dropped, refused = (host.defer("works", name="waits") for _ in range(2))
    run = run_of(run_id(dropped))
    assert (run.backend, run.external_id) == ("jobs", run.run_id)
    cancel(run_id(dropped))
    deliver_due()
    assert status(dropped) == "cancelled"
    cancel(run_id(refused))
    host.online()
    job_ends(refused, "aborted")
    assert host.traced("waits") == []
    for job_id in (dropped, refused):
        assert run_of(run_id(job_id)).stop_state == "never_started"


@pytest.mark.parametrize("name", ["works", "waits", "returns_coroutine"])
def test_cancelled_while_it_runs(host: HostHarness, name: str) -> None:
    host.online()
    job_id = host.defer(name, name="trace")
    wait_until(lambda: host.traced("trace"), "the start")
    cancel(run_id(job_id))
    job_ends(job_id, "aborted")
    assert host.traced("trace")[1:] == (["left"] if name == "waits" else [])
    assert run_of(run_id(job_id)).stop_state == "acknowledged"
    assert "ERROR" not in host.log.read_text()


def test_told_by_the_backend(host: HostHarness) -> None:
    host.online()
    backend = get_backend("jobs")
    asked, told = host.defer("works", name="works"), host.defer("waits", name="waits")
    wait_until(lambda: host.traced("works") and host.traced("waits"), "the start")
    for job_id in (asked, told):
        cancel(run_id(job_id))
    requests = [StopRequest(run_id(job_id), run_id(job_id), True) for job_id in (asked, told)]
    strange = StopRequest("tsk_1", "procrastinate-x", True)
    outcomes = backend.stop([*requests, strange], force=False)
    assert set(outcomes) == {run_id(asked), run_id(told), "procrastinate-x"}
    assert StopOutcome.STOPPED not in outcomes.values()
    for job_id in (asked, told):
        job_ends(job_id, "aborted")


@pytest.mark.parametrize("name", ["parent", "aparent"])
def test_children_go_along(host: HostHarness, name: str) -> None:
    host.online()
    job_id = host.defer(name, name="child")
    wait_until(lambda: host.traced("child"), "the start of the child")
    child = int(host.traced("children")[0])
    wait_until(lambda: run_of(run_id(child)).parent == run_of(run_id(job_id)), "its parent")
    cancel(run_id(child))
    job_ends(child, "aborted")


def test_retried_because_its_worker_was_killed(host: HostHarness) -> None:
    """It runs again once the heartbeat of the dead execution is old enough."""
    host.online()
    job_id = host.defer("works", name="killed")
    wait_until(lambda: host.traced("killed"), "the start")
    host.kill()
    (job,) = app.job_manager.list_jobs(id=job_id)
    async_to_sync(app.job_manager.retry_job)(job)
    host.online()
    wait_until(lambda: len(host.traced("killed")) == 2, "the second start")
    assert run_of(run_id(job_id)).status == "running"
    cancel(run_id(job_id))
    job_ends(job_id, "aborted")


def test_rolled_back(host: HostHarness) -> None:
    with transaction.atomic():
        host.defer("add", x=1)
        transaction.set_rollback(True)
    assert not get_run_model()._default_manager.exists()


def test_cancelled_by_the_means_of_procrastinate(host: HostHarness) -> None:
    host.online()
    waiting = host.defer("works", {"schedule_in": {"hours": 1}}, name="waiting")
    running = host.defer("works", name="running")
    wait_until(lambda: host.traced("running"), "the start")
    for job_id in (waiting, running):
        assert app.job_manager.cancel_job_by_id(job_id, abort=True)
        run = run_of(run_id(job_id))
        assert (run.status, run.cancellation.requested_by) == ("cancelled", "procrastinate")
    job_ends(waiting, "cancelled")
    job_ends(running, "aborted")


def test_dispatched__is_no_run_of_its_own(host: HostHarness) -> None:
    host.online()
    backend = get_backend("jobs")
    run = make_run(backend="jobs")
    run.external_id = backend.new_external_id(run)
    run.save(update_fields=["external_id"])
    backend.dispatch(run, TaskCall("tests.backends.procrastinate_jobs.crawl_page", kwargs=PAGE))
    wait_until(lambda: has_status(run.run_id, "completed"), "the end")
    assert get_run_model()._default_manager.count() == 1


PAGE = {"page": "/a"}
