"""Deferring Procrastinate tasks of a host as runs, in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import current_run, execution
from tests.helpers import make_run
from tests.services import require_package

require_package("procrastinate")

from procrastinate import App
from procrastinate.jobs import Job
from procrastinate.testing import InMemoryConnector

from django_run_cancel.integrations.procrastinate import cancellable
from tests.integrations.helpers import cancel, run_of
from tests.integrations.procrastinate_memory import run_id, runs, status, work

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("threads_leave_no_connections"),
]

PERIOD = 1_700_000_000


@pytest.fixture
def app() -> App:
    app = App(connector=InMemoryConnector())
    cancellable(app)
    return app


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
