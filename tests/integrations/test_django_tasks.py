"""Tasks of Django Tasks as runs, without a worker: enqueueing, executing at once, direct calls."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.utils.module_loading import import_string

from django_run_cancel.backends import TaskCall
from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.execution import current_run, execution
from django_run_cancel.integrations.tracking import TaskMessage, executing_async
from django_run_cancel.models import get_run_model
from tests.helpers import make_run
from tests.services import require_package

require_package("django_tasks_db")

from django_tasks_db.compat import TASKS_LOGGER, BaseTaskBackend, task_started

from django_run_cancel.backends.django_tasks import DjangoTasksBackend
from django_run_cancel.integrations.django_tasks import CancellableBackendMixin
from tests.integrations import django_tasks_host
from tests.integrations.helpers import cancel, run_of

PACKAGE = BaseTaskBackend.__module__.removesuffix(".base")
ImmediateBackend: Any = import_string(f"{PACKAGE}.immediate.ImmediateBackend")
DummyBackend: Any = import_string(f"{PACKAGE}.dummy.DummyBackend")
HOST = django_tasks_host.__name__


class CancellableImmediateBackend(CancellableBackendMixin, ImmediateBackend):
    pass


class CancellableDummyBackend(CancellableBackendMixin, DummyBackend):
    pass


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    """Close the connection of the thread in which the ORM works for coroutines."""
    yield
    asyncio.run(sync_to_async(connections.close_all)())


@pytest.fixture
def tasks(request: pytest.FixtureRequest, settings: Any) -> Any:
    """Return the tasks of the host, made by a backend."""
    settings.TASKS = {"default": {"BACKEND": f"{__name__}.{request.param}"}}
    return importlib.reload(django_tasks_host)


def error_of(result: Any) -> Any:
    return result.errors[0].exception_class


def runs() -> Any:
    return get_run_model()._default_manager


immediate = pytest.mark.parametrize("tasks", ["CancellableImmediateBackend"], indirect=True)
dummy = pytest.mark.parametrize("tasks", ["CancellableDummyBackend"], indirect=True)


@immediate
@pytest.mark.django_db(transaction=True)
class TestImmediate:
    def test_is_a_run_of_the_same_id(self, tasks: Any) -> None:
        for name in ("add", "aadd"):
            result = getattr(tasks, name).enqueue(1, y=3)
            assert result.return_value == 4
            run = run_of(result.id)
            assert (run.title, run.status) == (f"{HOST}.{name}", "completed")
            assert (run.backend, run.parent) == ("", None)

    def test_in_an_event_loop(self, tasks: Any) -> None:
        result = asyncio.run(tasks.aadd.aenqueue(1))
        assert result.return_value == 3
        assert run_of(result.id).status == "completed"

    def test_called_in_an_event_loop__without_a_run(self, tasks: Any) -> None:
        """The ORM is refused there."""

        async def enqueue() -> Any:
            return tasks.add.enqueue(1)

        assert asyncio.run(enqueue()).return_value == 3
        assert not runs().exists()

    def test_failure(self, tasks: Any) -> None:
        result = tasks.fails.enqueue()
        assert error_of(result) is ValueError
        assert run_of(result.id).failure_reason == "ValueError: wrong"

    def test_in_a_transaction(self, tasks: Any) -> None:
        """The run that its start has created stays as it is when the transaction commits."""
        with transaction.atomic():
            result = tasks.add.enqueue(1)
            assert result.return_value == 3
        assert run_of(result.id).status == "completed"

    def test_cancelled_while_it_runs(self, tasks: Any, caplog: Any) -> None:
        with caplog.at_level(logging.INFO, logger=TASKS_LOGGER):
            result = tasks.cancels_itself.enqueue()
        assert error_of(result) is RunCancelled
        run = run_of(result.id)
        assert (run.status, run.stop_state) == ("cancelled", "acknowledged")
        last = caplog.records[-1]
        assert (last.levelname, last.exc_info) == ("INFO", None)
        assert "state=FAILED" in last.getMessage()

    def test_coroutine_that_is_cancelled_while_it_waits(self, tasks: Any) -> None:
        result = tasks.acancels_itself.enqueue()
        assert error_of(result) is RunCancelled
        assert run_of(result.id).stop_state == "acknowledged"

    def test_cancelled_is_logged_by_nobody_who_does_not_want_it(
        self, tasks: Any, caplog: Any
    ) -> None:
        with caplog.at_level(logging.WARNING, logger=TASKS_LOGGER):
            tasks.cancels_itself.enqueue()
        assert caplog.records == []

    def test_error_of_another_run(self, tasks: Any, caplog: Any) -> None:
        other = make_run()
        cancel(other.run_id)
        result = tasks.takes_run_id.enqueue(other.run_id)
        assert error_of(result) is RunCancelled
        assert run_of(result.id).status == "failed"
        assert caplog.records[-1].levelname == "ERROR"
        assert caplog.records[-1].exc_info is not None

    @pytest.mark.parametrize("name", ["calls", "acalls"])
    def test_child_of_the_task_that_enqueues_it(self, tasks: Any, name: str) -> None:
        result = getattr(tasks, name).enqueue()
        assert run_of(result.return_value).parent == run_of(result.id)

    def test_direct_call_is_only_the_function(self, tasks: Any) -> None:
        assert tasks.add.func(1) == tasks.add.call(1) == asyncio.run(tasks.add.acall(1)) == 3
        assert tasks.aadd.call(1) == asyncio.run(tasks.aadd.acall(1)) == 3
        assert not runs().exists()

    def test_direct_call_of_another_task_than_the_one_that_was_started(self, tasks: Any) -> None:
        task_started.send(None, task_result=started(tasks.add, "1"))
        assert tasks.aadd.call(1) == 3
        assert not runs().exists()
        assert tasks.add.call(1) == 3
        assert runs().count() == 1

    def test_executed_as_a_coroutine(self, tasks: Any) -> None:
        """As a worker in an event loop would do it."""

        async def work() -> Any:
            task_started.send(None, task_result=started(tasks.add, "1"))
            return await tasks.add.acall(1)

        assert asyncio.run(work()) == 3
        assert run_of("1").status == "completed"

    @pytest.mark.parametrize("name", ["add", "aadd"])
    def test_executed_twice(self, tasks: Any, name: str, settings: Any) -> None:
        """By the host's wish; but not at the same time."""
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 2
        task = getattr(tasks, name)
        for _ in range(2):
            task_started.send(None, task_result=started(task, "1"))
            assert task.call(1) == 3
        assert runs().count() == 1
        make_run(run_id="2")
        with execution("2", heartbeat="process"):
            task_started.send(None, task_result=started(task, "2"))
            with pytest.raises(RunInProgress):
                task.call(1)

    def test_not_tracked(self, tasks: Any, settings: Any) -> None:
        settings.RUN_CANCEL_TRACK = ["other.*"]
        assert tasks.add.enqueue(1).return_value == 3
        assert not runs().exists()

    def test_dispatched__is_no_run_of_its_own(self, tasks: Any) -> None:
        run = make_run(external_id="1b4e28ba-2fa1-41d2-883f-0016d3cca427")
        DjangoTasksBackend("tasks", {}).dispatch(run, TaskCall(f"{HOST}.takes_run_id"))
        assert [each.run_id for each in runs().all()] == [run.run_id]
        assert run_of(run.run_id).status == "completed"


def started(task: Any, task_id: str) -> Any:
    return SimpleNamespace(id=task_id, task=task, args=[1], kwargs={}, status="RUNNING")


@dummy
@pytest.mark.django_db(transaction=True)
class TestEnqueueing:
    def test_run_waits_for_the_commit(self, tasks: Any) -> None:
        with transaction.atomic():
            result = tasks.add.enqueue(1)
            assert not runs().exists()
        run = run_of(result.id)
        assert (run.status, run.title, run.external_id) == ("queued", f"{HOST}.add", "")

    def test_rolled_back(self, tasks: Any) -> None:
        with transaction.atomic():
            tasks.add.enqueue(1)
            transaction.set_rollback(True)
        assert not runs().exists()

    def test_child_and_detached(self, tasks: Any) -> None:
        mail = dataclasses.replace(tasks.add, run_cancel_detached=True)
        parent = make_run(tenant="acme")
        with execution(parent.run_id):
            child = tasks.add.using(priority=1).enqueue(1)
            detached = mail.using(priority=1).enqueue(1)
        assert (run_of(child.id).parent, run_of(child.id).tenant) == (parent, "acme")
        assert run_of(detached.id).parent is None

    def test_in_an_event_loop(self, tasks: Any) -> None:
        async def enqueue() -> tuple[Any, Any]:
            return tasks.add.enqueue(1), await tasks.add.aenqueue(2)

        at_once, awaited = asyncio.run(enqueue())
        assert [each.run_id for each in runs().all()] == [awaited.id]
        assert at_once.id != awaited.id

    def test_describe(self, tasks: Any, settings: Any) -> None:
        settings.RUN_CANCEL_DESCRIBE = f"{__name__}.describe"
        result = tasks.add.enqueue(1, y=5)
        assert run_of(result.id).title == "tests.integrations.django_tasks_host.add [1] {'y': 5}"

    def test_database_that_refuses(self, tasks: Any, monkeypatch: Any, caplog: Any) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise OSError("refused")

        monkeypatch.setattr(transaction, "on_commit", refuse)
        assert tasks.add.enqueue(1).id
        assert "could not be written" in caplog.text

    def test_can_be_pickled(self, tasks: Any) -> None:
        if sys.modules["django"].VERSION < (6, 1):
            pytest.skip("Tasks can be pickled in Django 6.1.")
        assert pickle.loads(pickle.dumps(tasks.add)) == tasks.add


def describe(name: str, args: Any, kwargs: Any) -> dict[str, Any]:
    return {"title": f"{name} {args} {kwargs}"}


@pytest.mark.django_db(transaction=True)
class TestExecutingCoroutines:
    def test_parent_that_is_cancelled_while_its_child_is_created(self) -> None:
        parent = make_run("running")
        cancel(parent.run_id)

        async def work() -> None:
            async with executing_async(TaskMessage("child", "host.child", parent_id=parent.run_id)):
                pytest.fail("It started.")

        with pytest.raises(RunCancelled):
            asyncio.run(work())
        run = run_of("child")
        assert (run.status, run.stop_state) == ("cancelled", "never_started")

    def test_left_queued_for_the_next_try(self) -> None:
        async def work() -> None:
            async with executing_async(TaskMessage("1", "host.task"), requeue_on=ValueError):
                assert current_run() is not None
                raise ValueError("later")

        with pytest.raises(ValueError, match="later"):
            asyncio.run(work())
        assert run_of("1").status == "queued"


def test_apps_that_declare_tasks_are_imported_before_models(tmp_path: Path) -> None:
    """As with the backend of django-tasks-db."""
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "__init__.py").write_text(
        f"from {PACKAGE.removesuffix('.backends')} import task\n\n@task\ndef work():\n    pass\n"
    )
    (tmp_path / "early_settings.py").write_text(
        "from tests.settings import *\nINSTALLED_APPS = ['early', *INSTALLED_APPS]\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        "DJANGO_SETTINGS_MODULE": "early_settings",
        "TASKS_BACKEND": "django_run_cancel.integrations.django_tasks.CancellableDatabaseBackend",
    }
    code = "import django; django.setup(); import early; print(type(early.work).__name__)"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert result.stdout == b"CancellableTask\n", result.stderr.decode()
