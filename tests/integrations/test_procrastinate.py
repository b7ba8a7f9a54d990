"""Procrastinate tasks of a host as runs, in memory: deferring, executing, retrying, cancelling."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, transaction

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import checkpoint, current_run, execution
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from tests.helpers import make_run
from tests.services import require_package

require_package("procrastinate")

from procrastinate import App, RetryStrategy
from procrastinate.exceptions import JobAborted
from procrastinate.jobs import Job
from procrastinate.testing import InMemoryConnector

from django_run_cancel.integrations.procrastinate import cancellable
from tests.integrations.helpers import cancel, run_of

pytestmark = pytest.mark.django_db(transaction=True)

PERIOD = 1_700_000_000


@pytest.fixture
def app() -> App:
    app = App(connector=InMemoryConnector())
    cancellable(app)
    return app


def closing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Close the connections of the thread that a worker uses, as it ends then."""

    def close(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            if threading.current_thread() is not threading.main_thread():
                connections.close_all()

    return close


@pytest.fixture(autouse=True)
def _threads_leave_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_run_cancel.execution.block import ExecutionBlock

    monkeypatch.setattr(ExecutionBlock, "__exit__", closing(ExecutionBlock.__exit__))
    monkeypatch.setattr(ExecutionBlock, "__enter__", closing(ExecutionBlock.__enter__))


def work(app: App) -> None:
    """Execute what is due."""
    worker: Any = app.run_worker_async
    async_to_sync(worker)(wait=False, install_signal_handlers=False, listen_notify=False)


def status(app: App, job_id: int) -> str:
    connector: Any = app.connector
    return str(connector.jobs[job_id]["status"])


def run_id(job_id: int) -> str:
    return f"procrastinate-{job_id}"


def runs() -> Any:
    return get_run_model()._default_manager


class TestExecuting:
    @pytest.mark.parametrize("kind", ["function", "coroutine", "returns a coroutine"])
    def test_is_a_run(self, app: App, kind: str) -> None:
        seen = []

        def add(x: int, y: int = 2) -> None:
            running = current_run()
            assert running is not None
            seen.append((running.run_id, x + y))

        async def aadd(x: int, y: int = 2) -> None:
            await asyncio.sleep(0)
            add(x, y)

        functions = {"function": add, "coroutine": aadd}
        task = app.task(name="host.add")(functions.get(kind) or (lambda x, y: aadd(x, y)))
        job_id = task.defer(x=1, y=3)
        run = run_of(run_id(job_id))
        assert (run.title, run.status, run.backend, run.parent) == ("host.add", "queued", "", None)
        work(app)
        assert seen == [(run.run_id, 4)]
        assert status(app, job_id) == "succeeded"
        assert run_of(run.run_id).status == "completed"

    @pytest.mark.parametrize("kind", ["function", "coroutine", "returns a coroutine"])
    def test_failure(self, app: App, kind: str) -> None:
        task = make_failing(app, kind)
        job_id = task.defer()
        work(app)
        assert status(app, job_id) == "failed"
        run = run_of(run_id(job_id))
        assert (run.status, run.failure_reason) == ("failed", "ValueError: wrong")

    @pytest.mark.parametrize("kind", ["function", "coroutine", "returns a coroutine"])
    def test_retries__queued_in_between_and_failed_in_the_end(self, app: App, kind: str) -> None:
        task = make_failing(app, kind, retry=RetryStrategy(max_attempts=1, wait=60))
        job_id = task.defer()
        work(app)
        assert (status(app, job_id), run_of(run_id(job_id)).status) == ("todo", "queued")
        connector: Any = app.connector
        connector.jobs[job_id]["scheduled_at"] = None
        work(app)
        assert (status(app, job_id), run_of(run_id(job_id)).status) == ("failed", "failed")

    @pytest.mark.parametrize("kind", ["function", "coroutine", "returns a coroutine"])
    def test_cancelled_while_it_waits(self, app: App, kind: str) -> None:
        task = make_failing(app, kind, retry=3)
        job_id = task.defer()
        cancel(run_id(job_id))
        work(app)
        assert status(app, job_id) == "aborted"

    @pytest.mark.parametrize("kind", ["function", "coroutine", "returns a coroutine"])
    def test_cancelled_while_it_runs(self, app: App, kind: str, caplog: Any) -> None:
        def ask() -> None:
            running = current_run()
            assert running is not None
            cancel_runs([running.run_id], requested_by="tests")
            connections.close_all()

        def function() -> None:
            ask()
            running = current_run()
            assert running is not None
            wait_until(lambda: running.cancel_requested, "the request")
            checkpoint()

        async def coroutine() -> None:
            await sync_to_async(ask, thread_sensitive=False)()
            if kind == "coroutine":
                await asyncio.sleep(120)
            running = current_run()
            assert running is not None
            while not running.cancel_requested:
                await asyncio.sleep(0.01)
            checkpoint()

        functions = {"function": function, "coroutine": coroutine}
        task = app.task(name="host.task", retry=3)(functions.get(kind) or (lambda: coroutine()))
        job_id = task.defer()
        work(app)
        assert status(app, job_id) == "aborted"
        run = run_of(run_id(job_id))
        assert (run.status, run.stop_state) == ("cancelled", "acknowledged")
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

    @pytest.mark.parametrize("is_cancelled", [True, False])
    def test_coroutine_that_procrastinate_interrupts(self, app: App, is_cancelled: bool) -> None:
        """Because it was told to abort it, or because its worker ends."""

        @app.task(name="host.task", retry=RetryStrategy(max_attempts=3, wait=60))
        async def task() -> None:
            running = current_run()
            assert running is not None
            if is_cancelled:
                await sync_to_async(cancel)(running.run_id)
            raise asyncio.CancelledError

        job_id = task.defer()
        work(app)
        run = run_of(run_id(job_id))
        expected = ("aborted", "cancelled") if is_cancelled else ("todo", "queued")
        assert (status(app, job_id), run.status) == expected

    @pytest.mark.parametrize("kind", ["function", "coroutine"])
    def test_child_of_the_task_that_defers_it(self, app: App, kind: str) -> None:
        @app.task(name="host.inner")
        def inner() -> None:
            pass

        @app.task(name="host.mail")
        async def mail() -> None:
            pass

        detached: Any = mail
        detached.run_cancel_detached = True

        def outer() -> None:
            assert inner() is None  # only the function
            inner.defer()
            mail.defer()
            connections.close_all()

        async def aouter() -> None:
            await mail()
            await inner.defer_async()
            await mail.defer_async()

        task = app.task(name="host.outer")(outer if kind == "function" else aouter)
        task.defer()
        work(app)
        assert [(run.title, run.status) for run in runs().order_by("run_id")] == [
            ("host.outer", "completed"),
            ("host.inner", "completed"),
            ("host.mail", "completed"),
        ]
        parents = [run.parent and run.parent.title for run in runs().order_by("run_id")]
        assert parents == [None, "host.outer", None]

    @pytest.mark.parametrize("kind", ["function", "coroutine"])
    def test_direct_call_is_only_the_function(self, app: App, kind: str) -> None:
        def function() -> Any:
            return current_run()

        async def coroutine() -> Any:
            return current_run()

        task: Any = app.task(name="host.task")(function if kind == "function" else coroutine)
        task.defer()
        work(app)
        assert runs().count() == 1
        called = task()
        assert (asyncio.run(called) if kind == "coroutine" else called) is None

    @pytest.mark.parametrize("kind", ["function", "coroutine"])
    def test_ids_that_begin_again__executed_without_a_run(self, app: App, kind: str) -> None:
        seen = []

        def function() -> None:
            seen.append(current_run())

        async def coroutine() -> None:
            seen.append(current_run())

        task = app.task(name="host.task")(function if kind == "function" else coroutine)
        make_run("completed", run_id=run_id(1))
        job_id = task.defer()
        work(app)
        assert (seen, status(app, job_id)) == ([None], "succeeded")

    def test_error_of_another_run(self, app: App) -> None:
        @app.task(name="host.task")
        def task() -> None:
            raise RunCancelled("tsk_1")

        job_id = task.defer()
        work(app)
        assert status(app, job_id) == "failed"
        assert run_of(run_id(job_id)).status == "failed"

    def test_aborted_by_the_task_itself(self, app: App) -> None:
        @app.task(name="host.task", retry=3)
        def task() -> None:
            raise JobAborted

        job_id = task.defer()
        work(app)
        assert status(app, job_id) == "aborted"
        assert run_of(run_id(job_id)).status == "failed"

    def test_task_that_the_worker_does_not_know(self, app: App) -> None:
        job_id = app.configure_task("host.unknown").defer()
        assert run_of(run_id(job_id)).title == "host.unknown"
        work(app)
        assert status(app, job_id) == "failed"


def make_failing(app: App, kind: str, **options: Any) -> Any:
    def fails() -> None:
        raise ValueError("wrong")

    async def afails() -> None:
        raise ValueError("wrong")

    def returns() -> Awaitable[None]:
        return afails()

    functions: dict[str, Any] = {"function": fails, "coroutine": afails}
    return app.task(name="host.fails", **options)(functions.get(kind, returns))


class TestDeferring:
    def test_run_waits_for_the_commit(self, app: App, settings: Any) -> None:
        path = "django_run_cancel.backends.procrastinate.ProcrastinateBackend"
        settings.RUN_CANCEL_BACKENDS = {"jobs": {"BACKEND": path}}
        with transaction.atomic():
            job_id = app.configure_task("host.task").defer()
            assert not runs().exists()
        run = run_of(run_id(job_id))
        assert (run.status, run.backend, run.external_id) == ("queued", "jobs", run.run_id)

    def test_many_at_once(self, app: App) -> None:
        deferrer: Any = app.configure_task("host.task")
        if not hasattr(deferrer, "batch_defer"):
            pytest.skip("Older versions defer single jobs only.")
        assert len(deferrer.batch_defer({"x": 1}, {"x": 2})) == 2
        async_to_sync(deferrer.batch_defer_async)({"x": 3})
        assert runs().count() == 3

    def test_in_a_transaction_of_the_host_itself(self, app: App) -> None:
        """Where another connection is given, it may be rolled back."""
        manager: Any = app.job_manager
        job = Job(queue="default", lock=None, queueing_lock=None, task_name="host.task")
        if not hasattr(manager, "batch_defer_jobs"):
            pytest.skip("Older versions take no connection.")
        manager.defer_job(job, connection=object())
        async_to_sync(manager.defer_job_async)(job, connection=object())
        assert not runs().exists()

    def test_periodic__once(self, app: App) -> None:
        job = Job(
            queue="default",
            lock=None,
            queueing_lock=None,
            task_name="host.task",
            task_kwargs={"timestamp": PERIOD},
        )
        for _ in range(2):
            async_to_sync(app.job_manager.defer_periodic_job)(
                job=job, periodic_id="", defer_timestamp=PERIOD
            )
        assert runs().count() == 1

    @pytest.mark.parametrize("is_cancelled", [False, True])
    def test_parent_of_a_run_that_a_consumer_has_created(
        self, app: App, is_cancelled: bool
    ) -> None:
        """The consumer was quicker than the publisher, and does not know the parent."""
        parent = make_run(tenant="acme")
        make_run("running", run_id=run_id(1), tenant="")
        with suppress(RunCancelled), execution(parent.run_id):
            if is_cancelled:
                cancel(parent.run_id)
            app.configure_task("host.task").defer()
        run = run_of(run_id(1))
        assert (run.parent, run.tenant) == (parent, "acme")
        assert run.status == ("cancelled" if is_cancelled else "running")

    def test_not_tracked(self, app: App, settings: Any) -> None:
        app.configure_task("builtin:procrastinate.builtin_tasks.remove_old_jobs").defer(max_hours=1)
        app.configure_task("host.task", queueing_lock="run_cancel-1").defer(run_id="tsk_1")
        settings.RUN_CANCEL_TRACK = ["other.*"]

        @app.task(name="host.task")
        def task() -> None:
            assert current_run() is None

        job_id = task.defer()
        work(app)
        assert status(app, job_id) == "succeeded"
        assert not runs().exists()

    def test_cancelled_by_the_means_of_procrastinate(self, app: App) -> None:
        manager = app.job_manager
        first, second = (app.configure_task("host.task").defer() for _ in range(2))
        assert manager.cancel_job_by_id(first)
        assert not manager.cancel_job_by_id(first)
        assert async_to_sync(manager.cancel_job_by_id_async)(job_id=second)
        assert not async_to_sync(manager.cancel_job_by_id_async)(job_id=second)
        for job_id in (first, second):
            run = run_of(run_id(job_id))
            assert (run.status, run.cancellation.requested_by) == ("cancelled", "procrastinate")

    def test_cancelled_in_an_event_loop(self, caplog: Any) -> None:
        """The ORM is refused there, but not every connector."""
        app: Any = App(connector=InMemoryConnector())
        app.job_manager.cancel_job_by_id = lambda job_id: True
        cancellable(app)
        job_id = app.configure_task("host.task").defer()

        async def cancel_job() -> Any:
            return app.job_manager.cancel_job_by_id(job_id)

        assert asyncio.run(cancel_job())
        assert run_of(run_id(job_id)).status == "queued"
        assert f"The run of the job {job_id} was not cancelled." in caplog.text
