"""Executing Procrastinate tasks of a host as runs, in memory: ends, retries and cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import checkpoint, current_run
from django_run_cancel.testing import wait_until
from tests.helpers import make_run
from tests.services import require_package

require_package("procrastinate")

from procrastinate import App, RetryStrategy
from procrastinate.exceptions import JobAborted
from procrastinate.testing import InMemoryConnector

from django_run_cancel.integrations.procrastinate import cancellable
from tests.integrations.helpers import cancel, run_of
from tests.integrations.procrastinate_memory import run_id, runs, status, work

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("threads_leave_no_connections"),
]


@pytest.fixture
def app() -> App:
    app = App(connector=InMemoryConnector())
    cancellable(app)
    return app


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
