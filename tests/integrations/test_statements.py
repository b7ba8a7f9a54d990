"""How many statements a tracked task costs in its life: when it is published, starts and ends."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection
from django.db.models import AutoField
from django.test.utils import CaptureQueriesContext

from django_run_cancel.execution import execution
from django_run_cancel.models import get_run_model
from tests.helpers import make_run
from tests.services import require_package

require_package("celery")

from celery import Celery, chain, chord

from tests.integrations.celery_messages import execute_all, execute_next


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect the verbs of the statements, without BEGIN and COMMIT."""
    verbs: list[str] = []
    with CaptureQueriesContext(connection) as captured:
        yield verbs
    sent = [query["sql"].split()[0] for query in captured.captured_queries]
    verbs += [verb for verb in sent if verb not in {"BEGIN", "COMMIT", "SAVEPOINT", "RELEASE"}]


@pytest.fixture
def app() -> Celery:
    path = "django_run_cancel.integrations.celery:CancellableTask"
    app = Celery("statements", broker="memory://", task_cls=path, set_as_current=False)

    @app.task(shared=False, name="host.add")
    def add(x: int) -> int:
        return x

    return app


def execute(task: Any, task_id: str, **request: Any) -> Any:
    """Do what a worker does with a message, in this process."""
    task.push_request(
        id=task_id, called_directly=False, is_eager=False, args=[1], kwargs={}, **request
    )
    try:
        return task(1)
    finally:
        task.pop_request()


@pytest.mark.django_db(transaction=True)
class TestCelery:
    def test_one_when_published_and_two_when_executed(self, app: Celery) -> None:
        task = app.tasks["host.add"]
        with statements() as published:
            task_id = task.delay(1).id
        with statements() as executed:
            execute(task, task_id)
        assert published == ["INSERT"]
        # MySQL and MariaDB return nothing from an UPDATE.
        assert len(executed) == (3 if connection.vendor == "mysql" else 2), executed

    def test_published_by_a_running_task(self, app: Celery) -> None:
        """One statement more: has a run above it been cancelled since?"""
        task, above = app.tasks["host.add"], make_run()
        with execution(above.run_id), statements() as published:
            task_id = task.apply_async([1], parent_id=above.run_id).id
        with statements() as executed:
            execute(task, task_id, parent_id=above.run_id)
        assert get_run_model()._default_manager.get(run_id=task_id).parent == above
        assert published == ["INSERT"]
        assert len(executed) == (5 if connection.vendor == "mysql" else 3), executed

    def test_published_elsewhere(self, app: Celery) -> None:
        with statements() as executed:
            execute(app.tasks["host.add"], str(uuid.uuid4()))
        assert len(executed) == (6 if connection.vendor == "mysql" else 5), executed

    def test_not_tracked(self, app: Celery, settings: Any) -> None:
        settings.RUN_CANCEL_TRACK = []
        with statements() as sent:
            app.tasks["host.add"].delay(1)
            execute(app.tasks["host.add"], str(uuid.uuid4()))
        assert sent == []


@pytest.mark.django_db(transaction=True)
class TestCeleryCanvas:
    """No task costs more than one that is published alone."""

    # Only then is the key of a parent unknown before it is inserted.
    PARENTS = ["UPDATE"] if isinstance(get_run_model()._meta.pk, AutoField) else []
    START_AND_END = 5 if connection.vendor == "mysql" else 3  # of a task below another

    @pytest.fixture
    def app(self, app: Celery) -> Iterator[Celery]:
        app.conf.update(task_default_queue="statements", result_backend="cache+memory://")
        app.control.purge()
        yield app
        app.control.purge()

    def test_chain(self, app: Celery) -> None:
        task = app.tasks["host.add"]
        with statements() as published:
            chain(*(task.si(n) for n in range(20))).apply_async()
        with statements() as executed:
            execute_all(app)
        assert published == ["INSERT", *self.PARENTS]
        assert set(get_run_model()._default_manager.values_list("status")) == {("completed",)}
        # Nothing is above the first.
        above = self.START_AND_END - (3 if connection.vendor == "mysql" else 2)
        assert len(executed) == 20 * self.START_AND_END - above

    def test_chord(self, app: Celery) -> None:
        task = app.tasks["host.add"]

        @app.task(shared=False, name="host.total")
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        with statements() as published:
            chord([task.s(n) for n in range(20)], total.s()).apply_async()
        with statements() as members:
            for _ in range(20):
                execute_next(app)
        with statements() as body:
            execute_next(app)
        assert published == ["INSERT", *self.PARENTS, *["INSERT"] * 19]
        assert set(get_run_model()._default_manager.values_list("status")) == {("completed",)}
        assert len(members) == 20 * self.START_AND_END
        assert len(body) == (3 if connection.vendor == "mysql" else 2)

    def test_published_elsewhere(self, app: Celery) -> None:
        """The first of a chain creates the runs of all."""
        task = app.tasks["host.add"]
        chain(*(task.si(n) for n in range(20))).apply_async()
        get_run_model()._default_manager.all().delete()
        with statements() as first:
            execute_next(app)
        with statements() as second:
            execute_next(app)
        assert len(first) == (6 if connection.vendor == "mysql" else 5) + len(self.PARENTS)
        assert len(second) == self.START_AND_END, second
