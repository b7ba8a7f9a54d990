"""Eager tasks of Celery as runs, and which tasks of a host the class is for."""

from __future__ import annotations

import sys
import uuid
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connections

from django_run_cancel.apps import _import_task_classes
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.db import retry
from django_run_cancel.execution import current_run
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from tests.helpers import IS_SQLITE, make_run
from tests.services import require_package

require_package("celery")

from celery import Celery
from celery.exceptions import Ignore

from django_run_cancel.integrations.celery import CancellableTask
from tests.integrations.celery_messages import CLASS
from tests.integrations.helpers import run_of


@pytest.mark.django_db(transaction=True)
class TestEager:
    @pytest.fixture
    def app(self) -> Celery:
        app = Celery("eager", task_cls=CLASS, set_as_current=False)
        app.conf.update(task_always_eager=True, task_store_eager_result=False)
        return app

    def test_is_a_run_of_the_same_id(self, app: Celery) -> None:
        seen = []

        @app.task(shared=False, name="host.add")
        def add(x: int, y: int = 2) -> int:
            running = current_run()
            assert running is not None
            seen.append(running.run_id)
            return x + y

        result = add.delay(1, y=3)
        assert (result.get(), seen) == (4, [result.id])
        run = run_of(result.id)
        assert (run.title, run.status, run.backend, run.parent) == (
            "host.add",
            "completed",
            "",
            None,
        )
        assert run.metadata == {}

    def test_direct_call_is_only_the_function(self, app: Celery) -> None:
        @app.task(shared=False, name="host.add")
        def add(x: int) -> Any:
            return x, current_run()

        assert add(1) == (1, None)
        assert add.run(2) == (2, None)
        assert not get_run_model()._default_manager.exists()

    def test_failure(self, app: Celery) -> None:
        @app.task(shared=False, name="host.fails")
        def fails() -> None:
            raise ValueError("wrong")

        result = fails.delay()
        assert result.state == "FAILURE"
        run = run_of(result.id)
        assert (run.status, run.failure_reason) == ("failed", "ValueError: wrong")

    def test_retry(self, app: Celery) -> None:
        @app.task(shared=False, name="host.fails_first", bind=True)
        def fails_first(self: Any) -> int:
            if self.request.retries < 2:
                raise self.retry(countdown=0)
            return int(self.request.retries)

        result = fails_first.delay()
        assert result.get() == 2
        assert run_of(result.id).status == "completed"

    def test_cancelled_before_it_starts(self, app: Celery) -> None:
        @app.task(shared=False, name="host.never")
        def never() -> None:
            pytest.fail("It started.")

        task_id = str(uuid.uuid4())
        make_run(run_id=task_id)
        cancel_runs([task_id], requested_by="tests")
        result = never.apply(task_id=task_id)
        assert result.state == "IGNORED"
        assert isinstance(result.result, Ignore)

    def test_cancelled_while_it_runs(self, app: Celery) -> None:
        @app.task(shared=False, name="host.cancels_itself")
        def cancels_itself() -> None:
            running = current_run()
            assert running is not None
            cancel_runs([running.run_id], requested_by="tests")
            with pytest.raises(Exception, match="cancelled"):
                wait_until(lambda: running.checkpoint(), "a checkpoint to raise")
            running.checkpoint()

        result = cancels_itself.delay()
        assert result.state == "IGNORED"
        run = run_of(result.id)
        assert (run.status, run.stop_state) == ("cancelled", "acknowledged")

    def test_child_of_the_task_that_publishes_it(self, app: Celery) -> None:
        told = []

        @app.task(shared=False, name="host.inner", bind=True)
        def inner(self: Any) -> None:
            told.append(self.request.parent_id)

        @app.task(shared=False, name="host.outer")
        def outer() -> str:
            return str(inner.apply_async().id)

        result = outer.delay()
        child = run_of(result.get(disable_sync_subtasks=False))
        if told == [None]:
            pytest.skip("Celery 5.3 tells a task that it executes at once no parent.")
        assert child.parent == run_of(result.id)

    @pytest.mark.parametrize("patterns", [["host.*"], ["*", "!other.*"]])
    def test_track_and_describe(
        self, app: Celery, settings: Any, caplog: Any, patterns: list[str]
    ) -> None:
        settings.RUN_CANCEL_TRACK = patterns
        settings.RUN_CANCEL_DESCRIBE = f"{__name__}.describe"

        @app.task(shared=False, name="other.task", bind=True)
        def other(self: Any) -> str:
            assert current_run() is None
            return str(self.request.id)

        @app.task(shared=False, name="host.task")
        def task(path: str, fails: bool = False) -> None:
            pass

        untracked = other.delay()
        assert untracked.get() == untracked.id
        assert not get_run_model()._default_manager.exists()
        run = run_of(task.delay("/a").id)
        assert (run.tenant, run.title, run.metadata) == ("acme", "Crawl /a", {"path": "/a"})
        undescribed = run_of(task.delay("/a", fails=True).id)
        assert (undescribed.title, undescribed.status) == ("host.task", "completed")
        assert "RUN_CANCEL_DESCRIBE cannot describe host.task" in caplog.text

    @pytest.mark.parametrize(
        "described",
        [
            {"no_such_field": 1},
            {"run_id": "other"},
            {"metadata": {1, 2}},
            {"parent": "tsk_1"},
            {"tenant": None},
            ["title"],
            "title",
            pytest.param(
                {"title": "x" * 5_000}, marks=pytest.mark.skipif(IS_SQLITE, reason="It takes any.")
            ),
        ],
    )
    def test_described_by_what_no_run_can_have(
        self, app: Celery, settings: Any, caplog: Any, monkeypatch: Any, described: Any
    ) -> None:
        settings.RUN_CANCEL_DESCRIBE = f"{__name__}.describe"
        monkeypatch.setitem(globals(), "describe", lambda *args: described)

        @app.task(shared=False, name="host.task")
        def task() -> int:
            return 1

        result = task.delay()
        assert result.get() == 1
        run = run_of(result.id)
        assert (run.title, run.status) == ("host.task", "completed")
        assert (
            "RUN_CANCEL_DESCRIBE returns fields for host.task that a run cannot have" in caplog.text
        )

    def test_described_while_the_database_is_away(
        self, app: Celery, settings: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The description is not blamed for it."""
        monkeypatch.setattr(retry, "START_DELAYS", ())
        settings.RUN_CANCEL_DESCRIBE = f"{__name__}.describe"

        def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("INSERT"):
                raise OperationalError("gone away")
            return execute(sql, params, many, context)

        @app.task(shared=False, name="host.task")
        def task(path: str) -> None:
            pass

        with connections["default"].execute_wrapper(fail), pytest.raises(OperationalError):
            task.apply(["/a"], throw=True)
        assert "RUN_CANCEL_DESCRIBE" not in caplog.text

    def test_in_an_event_loop__without_a_run(self, app: Celery) -> None:
        """As without the line: Django refuses the ORM there."""

        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> tuple[str, Any]:
            return self.request.id, current_run()

        async def publish() -> Any:
            return task.delay()

        result = async_to_sync(publish)()
        assert result.get(disable_sync_subtasks=False) == (result.id, None)
        assert not get_run_model()._default_manager.exists()


def describe(name: str, args: Any, kwargs: Any) -> dict[str, Any]:
    if kwargs.get("fails"):
        raise KeyError("broken")
    return {"tenant": "acme", "title": f"Crawl {args[0]}", "metadata": {"path": args[0]}}


def test_class_is_imported_with_the_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may publish by name before it has a task of the app."""
    path = "django_run_cancel.integrations.celery:CancellableTask"
    app = Celery("named", task_cls=path, set_as_current=False)
    missing = Celery("wrong", task_cls="django_run_cancel.nowhere:Task", set_as_current=False)
    with pytest.raises(ImportError, match="nowhere"):
        _import_task_classes()
    missing.close()
    _import_task_classes()
    monkeypatch.delitem(sys.modules, "celery._state")
    _import_task_classes()
    app.close()


def test_one_line_for_one_task() -> None:
    app = Celery("single", set_as_current=False)

    @app.task(shared=False, base=CancellableTask, name="host.one")
    def one() -> None:
        pass

    @app.task(shared=False, name="host.other")
    def other() -> None:
        pass

    assert isinstance(app.tasks["host.one"], CancellableTask)
    assert not isinstance(app.tasks["host.other"], CancellableTask)
