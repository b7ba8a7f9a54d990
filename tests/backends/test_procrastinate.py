from __future__ import annotations

import uuid
from typing import Any, Literal

import pytest
from django.db import connection, transaction

from django_run_cancel.backends import StopOutcome, StopRequest, TaskCall
from django_run_cancel.backends.base import BackendError
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import wait_until
from django_run_cancel.testing.conformance import BackendConformance, Harness, Proxy
from django_run_cancel.testing.conformance.proxy import host_and_port
from tests.helpers import IS_POSTGRESQL, make_run, rows_locked
from tests.services import require_package

require_package("procrastinate")
if not IS_POSTGRESQL:
    pytest.skip("Procrastinate needs PostgreSQL", allow_module_level=True)

from procrastinate import App, SyncPsycopgConnector
from procrastinate.exceptions import JobAborted

from django_run_cancel.backends.procrastinate import ProcrastinateBackend
from django_run_cancel.exceptions import RunCancelled, UnknownTask
from django_run_cancel.integrations.procrastinate import ends_cancelled
from tests.backends import procrastinate_jobs

JOBS = procrastinate_jobs.__name__


class Procrastinate(Harness):
    backend = "django_run_cancel.backends.procrastinate.ProcrastinateBackend"
    ready = "Launching a worker"

    def options(self) -> dict[str, Any]:
        return {"TASK": f"{JOBS}.crawl"}

    def command(self) -> list[str]:
        intervals = ["--fetch-job-polling-interval=0.2", "--abort-job-polling-interval=0.2"]
        return ["-m", "django", "procrastinate", "worker", "--concurrency=1", *intervals]


def jobs_of(run: Any) -> list[tuple[str, int]]:
    """Return status and finished attempts of each of the jobs of a run."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT status::text, attempts FROM procrastinate_jobs WHERE queueing_lock = %s",
            [run.external_id],
        )
        return list(cursor.fetchall())


def test_ends_cancelled() -> None:
    with pytest.raises(JobAborted, match="has been cancelled"), ends_cancelled():
        raise RunCancelled("tsk_1")
    with pytest.raises(ZeroDivisionError), ends_cancelled():
        _ = 1 // 0


class TestProcrastinate(BackendConformance):
    harness_class = Procrastinate

    def job_ends(self, run: Any, status: str) -> None:
        wait_until(lambda: jobs_of(run) == [(status, 1)], f"the job to be {status}")

    def test_queued__cancelled(self, harness: Harness) -> None:
        harness.kill()
        (run,) = self.send("returns")
        self.cancel(run)
        assert self.told(run) == [StopOutcome.STOPPED]
        assert self.told(run) == [StopOutcome.TOLD]
        assert jobs_of(run) == [("cancelled", 0)]

    def test_refused__aborted_and_not_tried_again(self, harness: Harness) -> None:
        harness.kill()
        (run,) = self.send("returns")
        self.cancel(run)
        harness.online()
        self.job_ends(run, "aborted")

    def test_function__told_and_asking(self, harness: Harness) -> None:
        harness.online()
        run = self.started("checks")
        self.cancel(run)
        assert self.told(run, running=True) == [StopOutcome.UNSUPPORTED]
        self.job_ends(run, "aborted")

    def test_running_and_queued_once_more__not_stopped(self, harness: Harness) -> None:
        harness.online()
        run = self.started("checks")
        self.backend.dispatch(run)
        self.cancel(run)
        assert self.told(run, running=True) == [StopOutcome.UNSUPPORTED]
        assert ("cancelled", 0) in jobs_of(run)

    def test_job_that_somebody_has_locked__keeps_nobody_waiting(self, harness: Harness) -> None:
        harness.kill()
        locked, other = self.send("returns", 2)
        with rows_locked("procrastinate_jobs", "queueing_lock", locked.external_id):
            outcomes = self.stop(locked, other)
        assert "locked" in str(outcomes[0])
        assert outcomes[1] is StopOutcome.STOPPED
        assert self.told(locked) == [StopOutcome.STOPPED]

    def test_coroutine__interrupted(self, harness: Harness) -> None:
        harness.online()
        self.backend = ProcrastinateBackend("coroutines", {"TASK": f"{JOBS}.crawl_async"})
        assert self.backend.can_stop_running
        run = self.started("")
        self.cancel(run)
        assert self.told(run, running=True) == [StopOutcome.TOLD]
        self.job_ends(run, "aborted")
        assert self.stop_state(run) == "acknowledged"
        assert self.trace(run) == ["started", "left"]

    def test_task_that_does_not_exist(self) -> None:
        for name in (f"{JOBS}.gone", f"{JOBS}.asyncio"):
            backend = ProcrastinateBackend("wrong", {"TASK": name})
            assert [found.id for found in backend.check()] == ["django_run_cancel.E015"]
            with pytest.raises(UnknownTask, match=name):
                self.backend.check_call(TaskCall(name))

    def test_one_alias_for_many_tasks(self, harness: Harness) -> None:
        harness.online()
        backend = ProcrastinateBackend("many", {})
        run = self.make_run("returns", external_id=str(uuid.uuid4()))
        call = TaskCall(f"{JOBS}.crawl_page", kwargs={"page": "/a"}, options={"priority": 1})
        backend.check_call(call)
        backend.dispatch(run, call)
        self.wait_for(RunStatus.COMPLETED, run)
        assert self.trace(run) == ["page /a"]
        assert backend.can_stop_running
        assert backend.stop([StopRequest(run.run_id, run.external_id, True)], force=False)

    def test_calls_that_are_refused(self) -> None:
        backend = ProcrastinateBackend("many", {})
        task = f"{JOBS}.crawl"
        for call, problem in (
            (TaskCall(), "Name a task"),
            (TaskCall(task, args=[1]), "keyword arguments only"),
            (TaskCall(task, kwargs={"run_id": 1}), "keyword arguments only"),
            (TaskCall(task, options={"countdown": 1}), "takes no countdown.*priority, queue"),
            (TaskCall(task, options={"schedule_in": {"moons": 1}}), "moons"),
        ):
            with pytest.raises(TypeError, match=problem):
                backend.check_call(call)

    def test_belongs_to_the_transaction(self, harness: Harness) -> None:
        harness.kill()
        with transaction.atomic():
            (undone,) = self.send("returns")
            self.backend.dispatch(undone)
            assert jobs_of(undone) == [("todo", 0)]
            transaction.set_rollback(True)
        assert jobs_of(undone) == []

    @pytest.mark.parametrize("how", ["refused", "silent"])
    def test_a_database_of_its_own_that_is_down(
        self,
        harness: Harness,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
        how: Literal["refused", "silent"],
    ) -> None:
        harness.kill()  # it would take a job that it does not know
        ours = connection.settings_dict
        with Proxy(f"tcp://{ours['HOST']}:{ours['PORT']}") as through:
            host, port = host_and_port(through.url)
            where = {"host": host, "port": port, "user": ours["USER"], "dbname": ours["NAME"]}
            connector = SyncPsycopgConnector(kwargs=where)
            task = App(connector=connector).task(name="theirs")(len)
            monkeypatch.setattr(procrastinate_jobs, "theirs", task, raising=False)
            connector.open()
            request.addfinalizer(connector.close)
            backend = self.backend = ProcrastinateBackend(
                "theirs", {"TASK": f"{JOBS}.theirs", "TIMEOUT": harness.timeout}
            )
            (run,) = self.send("returns")
            assert jobs_of(run) == [("todo", 0)]
            through.down(how)
            assert all(isinstance(outcome, Exception) for outcome in self.stop(run, make_run()))
            with pytest.raises(BackendError):
                backend.dispatch(run)
            (message,) = backend.check(deploy=True)
            assert message.id == "django_run_cancel.W005"
            through.up()
            # Its pool takes a while until it tries to connect again.
            wait_until(lambda: backend.check(deploy=True) == [], "the database to be back")
            # Or what nobody waited for any more has done it by now.
            self.told(run)
            assert ("cancelled", 0) in jobs_of(run)
