"""Celery tasks of a host as runs, without a broker: publishing, executing, eager, signals."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.utils import timezone

from django_run_cancel.apps import _import_task_classes
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.db import retry
from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.execution import current_run, execution
from django_run_cancel.models import Cancellation, get_run_model, run_rows
from django_run_cancel.testing import wait_until
from tests.helpers import IS_SQLITE, make_run, statuses
from tests.services import require_package

require_package("celery")

from celery import Celery, chain, chord, current_app, group
from celery.app.task import Context
from celery.exceptions import Ignore, Reject
from celery.signals import task_failure, task_revoked

from django_run_cancel.integrations import celery_ends
from django_run_cancel.integrations.celery import CancellableTask
from tests.integrations.helpers import cancel, run_of

CLASS = "django_run_cancel.integrations.celery:CancellableTask"


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


@pytest.mark.django_db(transaction=True)
class TestPublishing:
    """With a broker in memory, which nobody consumes from."""

    @pytest.fixture
    def app(self) -> Iterator[Celery]:
        before = current_app._get_current_object()
        app = Celery("published", broker="memory://", task_cls=CLASS)

        @app.task(shared=False, name="host.add")
        def add(x: int, y: int = 2) -> int:
            return x + y

        @app.task(shared=False, name="host.mail", run_cancel_detached=True)
        def mail() -> None:
            pass

        yield app
        before.set_current()

    def test_run_waits_for_its_task(self, app: Celery, settings: Any) -> None:
        path = "django_run_cancel.backends.celery.CeleryBackend"
        settings.RUN_CANCEL_BACKENDS = {"celery": {"BACKEND": path, "OPTIONS": {"APP": "x"}}}
        with transaction.atomic():
            result = app.tasks["host.add"].delay(1)
            assert not get_run_model()._default_manager.exists()
        run = run_of(result.id)
        assert (run.status, run.title) == ("queued", "host.add")
        assert (run.backend, run.external_id) == ("celery", result.id)

    def test_by_name_and_once(self, app: Celery) -> None:
        task_id = str(uuid.uuid4())
        for retries in (0, 1):
            app.send_task("host.unknown", [1], task_id=task_id, retries=retries)
        assert run_of(task_id).title == "host.unknown"
        app.send_task("celery.backend_cleanup")
        app.send_task("host.dispatched", headers={"run_cancel_dispatched": True})
        assert get_run_model()._default_manager.count() == 1

    def test_parent(self, app: Celery) -> None:
        parent = make_run(tenant="acme")
        child = app.send_task("host.add", [1], parent_id=parent.run_id)
        detached = app.tasks["host.mail"].apply_async(parent_id=parent.run_id)
        assert (run_of(child.id).parent, run_of(child.id).tenant) == (parent, "acme")
        assert run_of(detached.id).parent is None

    def test_refused_by_the_broker(self, app: Celery, monkeypatch: Any) -> None:
        """Nobody will ever execute it: there is no run that waits for that."""

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise ConnectionRefusedError

        monkeypatch.setattr("kombu.messaging.Producer._publish", refuse)
        with pytest.raises(ConnectionRefusedError):
            app.tasks["host.add"].apply_async([1], retry=False)
        with pytest.raises(ConnectionRefusedError), transaction.atomic():
            app.send_task("host.add", [1], retry=False)
        assert not get_run_model()._default_manager.exists()

    def test_detached_link_of_a_chain(self, app: Celery) -> None:
        add, mail = app.tasks["host.add"], app.tasks["host.mail"]
        last = chain(add.s(1), add.s(2), mail.si()).apply_async()
        assert run_of(last.id).parent is None
        assert run_of(last.parent.id).parent == run_of(last.parent.parent.id)

    def test_links_of_a_chain(self, app: Celery, settings: Any) -> None:
        settings.RUN_CANCEL_TRACK = ["host.add"]
        add, mail = app.tasks["host.add"], app.tasks["host.mail"]
        last = chain(add.s(1), add.s(2), mail.si()).apply_async()
        first, second = run_of(last.parent.parent.id), run_of(last.parent.id)
        assert second.parent == first
        assert not get_run_model()._default_manager.filter(run_id=last.id).exists()

    def test_body_of_a_chord_is_above_its_members(self, app: Celery) -> None:
        member, body = str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("host.add", "celery.accumulate"):
            app.send_task(
                "host.add",
                task_id=member if name == "host.add" else str(uuid.uuid4()),
                chord={"task": name, "args": (), "kwargs": {}, "options": {"task_id": body}},
            )
        assert run_of(member).parent == run_of(body)
        assert get_run_model()._default_manager.count() == 3

    def test_run_that_a_consumer_has_created_already(self, app: Celery) -> None:
        run = make_run("running", run_id=str(uuid.uuid4()), title="quick")
        app.tasks["host.add"].apply_async([1], task_id=run.run_id)
        assert statuses(run) == ["running"]

    def test_consumer_has_no_backend(self, app: Celery, settings: Any) -> None:
        """What the publisher knows of how to stop the run is added to it."""
        path = "django_run_cancel.backends.celery.CeleryBackend"
        settings.RUN_CANCEL_BACKENDS = {"celery": {"BACKEND": path, "OPTIONS": {"APP": "x"}}}
        runs = [make_run(status, backend="", external_id="") for status in ("running", "failed")]
        for run in runs:
            app.tasks["host.add"].apply_async([1], task_id=run.run_id)
            run.refresh_from_db()
        assert [(run.backend, run.external_id) for run in runs] == [
            ("celery", runs[0].run_id),
            ("", ""),
        ]

    def test_runs_of_a_chain_appear_together(self, app: Celery, caplog: Any) -> None:
        """If a consumer saw the first alone, and it failed, nobody would end the others."""
        inserted = []

        def fail_at_the_second_of_each(execute: Any, sql: str, *args: Any) -> Any:
            if sql.startswith("INSERT"):
                inserted.append(sql)
                if len(inserted) in {1, 3, 4, 6}:  # both at once, then the second, and so again
                    raise IntegrityError("refused")
            return execute(sql, *args)

        add = app.tasks["host.add"]
        with connection.execute_wrapper(fail_at_the_second_of_each):
            chain(add.s(1), add.s(2)).apply_async()
        assert len(inserted) == 6
        assert "could not be written when it was published" in caplog.text
        assert not get_run_model()._default_manager.exists()


@pytest.mark.django_db(transaction=True)
class TestExecuting:
    """As a worker does it, in this process."""

    @pytest.fixture
    def app(self) -> Celery:
        return Celery("executed", backend="cache+memory://", task_cls=CLASS, set_as_current=False)

    def execute(self, task: Any, task_id: str, *args: Any, **request: Any) -> Any:
        task.push_request(
            id=task_id, called_directly=False, is_eager=False, args=args, kwargs={}, **request
        )
        try:
            return task(*args)
        finally:
            task.pop_request()

    def test_cancelled_is_revoked(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            pytest.fail("It started.")

        run = make_run(run_id=str(uuid.uuid4()))
        cancel(run.run_id)
        with pytest.raises(Ignore):
            self.execute(task, run.run_id)
        assert app.AsyncResult(run.run_id).state == "REVOKED"

    def test_executed_twice(self, app: Celery) -> None:
        calls = []

        @app.task(shared=False, name="host.task")
        def task() -> None:
            calls.append(1)

        task_id = str(uuid.uuid4())
        self.execute(task, task_id)
        app.backend.store_result(task_id, None, "SUCCESS")
        with pytest.raises(Ignore):
            self.execute(task, task_id, delivery_info={"redelivered": True})
        assert calls == [1]
        assert app.AsyncResult(task_id).state == "SUCCESS"

    def test_published_again_under_its_id(self, app: Celery) -> None:
        """As without the line; the run that has ended stays as it is."""

        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> tuple[str, Any]:
            return self.request.id, current_run()

        task_id = str(uuid.uuid4())
        self.execute(task, task_id)
        ended = run_of(task_id)
        assert self.execute(task, task_id) == (task_id, None)
        assert run_of(task_id).finished_at == ended.finished_at
        cancelled = make_run("cancelled", run_id=str(uuid.uuid4()))
        with pytest.raises(Ignore):
            self.execute(task, cancelled.run_id)

    @pytest.mark.parametrize(
        ("status", "fields", "retries"),
        [
            ("failed", {}, 0),
            ("terminated", {}, 0),
            ("timed_out", {"started_at": timezone.now()}, 0),
            ("failed", {"started_at": timezone.now()}, 1),
        ],
    )
    def test_ended_from_outside_before_it_starts(
        self, app: Celery, status: str, fields: dict[str, Any], retries: int
    ) -> None:
        """Neither the message that waited nor the next try is executed."""

        @app.task(shared=False, name="host.task")
        def task() -> None:
            raise AssertionError

        run = make_run(status, run_id=str(uuid.uuid4()), **fields)
        with pytest.raises(Ignore):
            self.execute(task, run.run_id, retries=retries)

    @pytest.mark.parametrize(
        ("acks_late", "retries", "is_sent"),
        [(True, 0, True), (False, 1, True), (False, 0, False)],
    )
    def test_comes_again_while_the_first_execution_lives(
        self, settings: Any, acks_late: bool, retries: int, is_sent: bool
    ) -> None:
        """It may be the only message that is left of the task."""
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.05
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 600
        app = Celery("again", broker="memory://", task_cls=CLASS, set_as_current=False)
        app.conf.task_default_queue = str(uuid.uuid4())

        @app.task(shared=False, name="host.task", acks_late=acks_late)
        def task(number: int) -> None:
            raise AssertionError

        run = make_run("queued", run_id=str(uuid.uuid4()))
        with execution(run.run_id), pytest.raises(Ignore):
            self.execute(task, run.run_id, 1, retries=retries)
        with app.connection_for_read() as connected:
            queue = connected.SimpleQueue(app.conf.task_default_queue)
            assert queue.qsize() == int(is_sent)
            if is_sent:
                message = queue.get()
                assert message.headers["id"] == run.run_id
                assert message.headers["retries"] == retries
                assert message.headers["eta"]
                assert message.payload[0] == [1]

    def test_id_that_no_run_can_have(self, app: Celery, caplog: Any) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> int:
            return 1

        assert self.execute(task, "x" * 65) == 1
        assert not get_run_model()._default_manager.exists()
        assert "host.task cannot be cancelled: no run can have the id xxx" in caplog.text

    def test_error_callback_of_a_cancelled_task(self, app: Celery) -> None:
        """It gets the id of the task that publishes it, and is no part of its work."""

        @app.task(shared=False, name="host.task")
        def task(failed_id: str) -> str:
            return failed_id

        parent = make_run("cancelled")
        callback, child = str(uuid.uuid4()), str(uuid.uuid4())
        assert self.execute(task, callback, parent.run_id, parent_id=parent.run_id)
        assert run_of(callback).parent is None
        with pytest.raises(Ignore):
            self.execute(task, child, "other", parent_id=parent.run_id)

    def test_ended_from_outside_is_revoked(self, app: Celery) -> None:
        """As by a watchdog: who waits for the result gets one."""

        @app.task(shared=False, name="host.task")
        def task() -> None:
            running = current_run()
            assert running is not None
            run_of(running.run_id).mark_timed_out("Too slow.")
            wait_until(lambda: running.checkpoint(), "a checkpoint to raise")

        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id)
        assert app.AsyncResult(task_id).state == "REVOKED"
        assert run_of(task_id).status == "timed_out"

    def test_taken_over_and_completed_by_another__keeps_its_result(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> None:
            rows = run_rows(run_id=self.request.id)
            rows.update(status="completed", execution_id=uuid.uuid4())
            app.backend.store_result(self.request.id, "of the other", "SUCCESS")
            self.retry()

        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id)
        assert app.AsyncResult(task_id).state == "SUCCESS"

    def test_rejected_and_requeued(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task(requeue: bool) -> None:
            raise Reject("later", requeue=requeue)

        for requeue, status in ((True, "queued"), (False, "failed")):
            task_id = str(uuid.uuid4())
            task.push_request(id=task_id, called_directly=False, is_eager=False)
            with pytest.raises(Reject):
                task(requeue)
            task.pop_request()
            assert run_of(task_id).status == status

    def test_started_before_its_publisher_has_created_the_runs(self, app: Celery) -> None:
        """Its own, those of the links of its chain, and that of the body of its chord."""

        @app.task(shared=False, name="host.task")
        def task() -> None:
            pass

        first, last, body = (str(uuid.uuid4()) for _ in range(3))
        link = {"task": "host.task", "args": (), "kwargs": {}, "options": {"task_id": last}}
        chord = {"task": "host.task", "args": (), "kwargs": {}, "options": {"task_id": body}}
        self.execute(task, first, chain=[link], chord=chord)
        assert run_of(first).status == "completed"
        assert (run_of(last).status, run_of(last).parent) == ("queued", run_of(first))
        assert (run_of(body).status, run_of(first).parent) == ("queued", run_of(body))

    def test_parent_that_is_cancelled_while_its_child_is_created(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            pytest.fail("It started.")

        parent = make_run("running")
        cancel(parent.run_id)
        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id, parent_id=parent.run_id)
        run = run_of(task_id)
        assert (run.parent, run.status, run.stop_state) == (parent, "cancelled", "never_started")
        assert run.cancellation.requested_by == "tests"

    def test_parent_whose_cancellation_has_been_deleted(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            pytest.fail("It started.")

        parent = make_run("running")
        cancel(parent.run_id)
        get_run_model()._default_manager.update(cancellation=None)
        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id, parent_id=parent.run_id)
        run = run_of(task_id)
        assert (run.status, run.cancellation.requested_by) == ("cancelled", "cascade")

    @pytest.mark.parametrize(
        "error", [RunCancelled("tsk_1"), TransitionNotAllowed("tsk_1", "failed", "completed")]
    )
    def test_error_of_another_run(self, app: Celery, error: Exception) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            raise error

        task_id = str(uuid.uuid4())
        with pytest.raises(type(error)):
            self.execute(task, task_id)
        assert run_of(task_id).status == "failed"

    def test_task_that_calls_itself(self, app: Celery) -> None:
        @app.task(shared=False, name="host.walk")
        def walk(depth: int = 2) -> int:
            return 1 + walk(depth - 1) if depth else 0

        task_id = str(uuid.uuid4())
        assert self.execute(walk, task_id) == 2
        assert run_of(task_id).status == "completed"

    def test_retry__with_no_tries_left(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task", bind=True, max_retries=0)
        def task(self: Any) -> None:
            raise self.retry(exc=ValueError("used up"))

        task_id = str(uuid.uuid4())
        with pytest.raises(ValueError, match="used up"):
            self.execute(task, task_id, retries=0)
        assert run_of(task_id).status == "failed"

    @pytest.mark.parametrize(
        ("kind", "status"),
        [
            ("task", "queued"),
            ("chain", "queued"),
            ("chord", "queued"),
            ("group", "queued"),
            ("other", "completed"),
        ],
    )
    def test_replaced(self, kind: str, status: str, settings: Any) -> None:
        """The run is that of the task with the same id; one that is not tracked ends it."""
        settings.RUN_CANCEL_TRACK = ["host.*"]
        before = current_app._get_current_object()
        app = Celery("replaced", backend="cache+memory://", broker="memory://", task_cls=CLASS)

        @app.task(shared=False, name="host.add")
        def add(*numbers: int) -> None:
            pass

        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> None:
            replacements = {
                "task": add.s(1),
                "chain": chain(add.s(1), add.s(2)),
                "chord": chord([add.s(1)], add.s()),
                "group": group(add.s(1), add.s(2)),
                "other": app.signature("other.add"),
            }
            raise self.replace(replacements[kind])

        task_id = str(uuid.uuid4())
        try:
            with pytest.raises(Ignore, match="Replaced"):
                self.execute(task, task_id)
        finally:
            before.set_current()
        assert run_of(task_id).status == status

    def test_replaced__cannot_be_sent(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task", bind=True)
        def task(self: Any) -> None:
            with pytest.raises(Exception, match="signature replacing"):
                self.replace(self.si().set(chord=self.si()))
            app.send_task = None  # type: ignore[method-assign]
            raise self.replace(self.si())

        task_id = str(uuid.uuid4())
        with pytest.raises(TypeError):
            self.execute(task, task_id)
        assert run_of(task_id).status == "failed"

    @pytest.mark.parametrize(("is_child", "status"), [(True, "queued"), (False, "failed")])
    def test_process_is_ended(
        self, app: Celery, monkeypatch: pytest.MonkeyPatch, is_child: bool, status: str
    ) -> None:
        """As by ``revoke(terminate=True)``: the worker's main process says what becomes of it."""

        @app.task(shared=False, name="host.task")
        def task() -> None:
            raise SystemExit

        process = SimpleNamespace(daemon=is_child)
        monkeypatch.setattr(celery_ends, "current_process", lambda: process)
        task_id = str(uuid.uuid4())
        with pytest.raises(SystemExit):
            self.execute(task, task_id)
        assert run_of(task_id).status == status

    def test_ignored_is_no_failure(self, app: Celery) -> None:
        @app.task(shared=False, name="host.task")
        def task() -> None:
            raise Ignore

        task_id = str(uuid.uuid4())
        with pytest.raises(Ignore):
            self.execute(task, task_id)
        assert run_of(task_id).status == "completed"


@pytest.mark.django_db(transaction=True)
class TestSignals:
    """What Celery says of a task that is not executed, or whose process is lost."""

    @pytest.fixture
    def task(self) -> Any:
        app = Celery("signals", task_cls=CLASS, set_as_current=False)

        @app.task(shared=False, name="host.task")
        def task() -> None:
            pass

        return task

    def revoke(self, task: Any, run: Any, **request: Any) -> None:
        context = Context(id=run.run_id, **request)
        task_revoked.send(
            sender=task, request=context, terminated=False, signum=None, expired=bool(request)
        )

    def test_revoked(self, task: Any) -> None:
        run, child = make_run("queued"), make_run("queued")
        body, ended = make_run("queued"), make_run("completed")
        chain_of = [{"task": "host.task", "options": {"chord": sent_as(body)}}]
        self.revoke(task, run)
        self.revoke(task, child, chain=chain_of)
        self.revoke(task, ended)
        assert statuses(run, child, body, ended) == ["cancelled"] * 3 + ["completed"]
        run, child = run_of(run.run_id), run_of(child.run_id)
        assert (run.cancellation.requested_by, run.cancellation.reason) == (
            "celery",
            "The task has been revoked.",
        )
        assert child.cancellation.reason == "The task has expired."
        assert Cancellation.objects.count() == 2

    def test_revoked_since_its_run_was_cancelled(self, task: Any) -> None:
        """By the delivery worker, say: the rest of the chord is cancelled for the same reason."""
        run, body = make_run("queued"), make_run("queued")
        cancel_runs([run.run_id], requested_by="ada", reason="Wrong day")
        self.revoke(task, run, chord=sent_as(body))
        record = run_of(body.run_id).cancellation
        assert (record.requested_by, record.reason) == ("ada", "Wrong day")

    def test_failed(self, task: Any) -> None:
        run, link, body = make_run("running"), make_run("queued"), make_run("queued")
        ended = make_run("cancelled")
        task.push_request(id=run.run_id, chain=[sent_as(link), sent_as(ended)], chord=sent_as(body))
        try:
            self.fail(task, run)
        finally:
            task.pop_request()
        assert statuses(run, link, body, ended) == ["failed"] * 3 + ["cancelled"]
        assert run_of(link.run_id).failure_reason == "ValueError: wrong"

    def test_failed_in_a_process_that_is_lost(self, task: Any) -> None:
        run, ended = make_run("running"), make_run("completed")
        self.fail(task, run)
        self.fail(task, ended)
        assert statuses(run, ended) == ["failed", "completed"]

    def fail(self, task: Any, run: Any) -> None:
        task_failure.send(
            sender=task, task_id=run.run_id, exception=ValueError("wrong"), args=(), kwargs={}
        )

    def test_not_tracked(self, task: Any, settings: Any, django_assert_num_queries: Any) -> None:
        settings.RUN_CANCEL_TRACK = []
        run = make_run("running")
        with django_assert_num_queries(0):
            self.revoke(task, run)
            self.fail(task, run)

    def test_leaves_no_connection_behind(self, task: Any) -> None:
        """In the main process of a worker, which starts others."""
        run = make_run("running")
        used = connections[run_rows().db]
        used.close()
        self.fail(task, run)
        assert used.connection is None
        assert statuses(run) == ["failed"]


def sent_as(run: Any) -> dict[str, Any]:
    return {"task": "host.task", "options": {"task_id": run.run_id}}
