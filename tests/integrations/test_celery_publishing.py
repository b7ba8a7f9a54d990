"""Publishing tasks of Celery as runs, with a broker in memory; and its signals."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import Cancellation, get_run_model, run_rows
from tests.helpers import make_run, statuses
from tests.services import require_package

require_package("celery")

from celery import Celery, chain, current_app
from celery.app.task import Context
from celery.signals import task_failure, task_revoked

from tests.integrations.celery_messages import CLASS
from tests.integrations.helpers import run_of


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
