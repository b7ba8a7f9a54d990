"""The runs of Celery's chains, groups and chords: how they end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connection

from django_run_cancel.execution import current_run
from django_run_cancel.testing import wait_until
from tests.helpers import make_run
from tests.services import require_package

require_package("celery")

from celery import Celery, chain, chord, group
from celery.exceptions import Ignore, Reject

from tests.integrations.celery_canvas import canvas_app, ends, has_ids, task_of
from tests.integrations.celery_messages import execute_all, execute_next
from tests.integrations.helpers import cancel, run_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def app() -> Iterator[Celery]:
    with canvas_app() as app:
        yield app


class TestEnds:
    """What Celery does not publish any more does not wait for ever."""

    REASON = "A task before this one has ended its chain or chord."

    @pytest.mark.parametrize("error", [Ignore(), Reject("no", requeue=False)])
    def test_ignored_or_rejected(self, app: Celery, error: Exception) -> None:
        def end(task: Any) -> None:
            raise error

        first = task_of(app, end)
        last = chain(first, app.tasks["a"].si(), app.tasks["b"].si()).apply_async()
        execute_all(app)
        ended = "completed" if isinstance(error, Ignore) else "failed"
        assert ends() == {"host.task": ended, "a": "terminated", "b": "terminated"}
        assert run_of(last.id).failure_reason == self.REASON

    def test_rejected_and_requeued(self, app: Celery) -> None:
        def requeue(task: Any) -> None:
            raise Reject("later", requeue=True)

        chain(task_of(app, requeue), app.tasks["a"].si()).apply_async()
        execute_all(app)
        assert ends() == {"host.task": "queued", "a": "queued"}

    def test_chain_that_a_task_ends(self, app: Celery) -> None:
        def end(task: Any) -> None:
            task.request.chain = None

        chain(task_of(app, end), app.tasks["a"].si()).apply_async()
        execute_all(app)
        assert ends() == {"host.task": "completed", "a": "terminated"}

    def test_chain_that_a_task_goes_on_with_itself(self, app: Celery) -> None:
        def publish(task: Any) -> None:
            link = app.signature(task.request.chain.pop())
            link.apply_async()

        chain(task_of(app, publish), app.tasks["a"].si()).apply_async()
        execute_next(app)
        assert ends() == {"host.task": "completed", "a": "queued"}
        execute_all(app)
        assert ends() == {"host.task": "completed", "a": "completed"}

    def test_replaced_by_a_task_without_a_run(self, app: Celery, settings: Any) -> None:
        """That goes on with the chain."""
        settings.RUN_CANCEL_TRACK = ["host.task", "a"]
        replaces = task_of(app, lambda task: task.replace(app.tasks["b"].si()))
        chain(replaces, app.tasks["a"].si()).apply_async()
        execute_next(app)
        assert ends() == {"host.task": "completed", "a": "queued"}
        execute_all(app)
        assert ends() == {"host.task": "completed", "a": "completed"}

    @has_ids
    def test_member_of_a_chord(self, app: Celery, monkeypatch: Any) -> None:
        def ignore(task: Any) -> None:
            raise Ignore

        member = task_of(app, ignore)
        links = [app.tasks["b"].si(), app.tasks["c"].si()]
        chain(
            chord([chain(member, app.tasks["a"].si()), app.tasks["d"].si()], links[0]), links[1]
        )()
        execute_all(app)
        dropped = dict.fromkeys("abc", "terminated")
        assert ends() == {"host.task": "completed", "d": "completed", **dropped}

    def test_member_of_a_chord_whose_result_the_host_may_store(
        self, app: Celery, monkeypatch: Any
    ) -> None:
        """Without a native join, Celery would go on with the body."""
        monkeypatch.setattr(type(app.backend), "supports_native_join", False)

        def ignore(task: Any) -> None:
            raise Ignore

        chord([chain(task_of(app, ignore), app.tasks["a"].si())], app.tasks["b"].si()).apply_async()
        execute_next(app)
        assert ends() == {"host.task": "completed", "a": "terminated", "b": "queued"}

    @has_ids
    def test_failure__with_what_follows_a_group(self, app: Celery) -> None:
        def fail(task: Any) -> None:
            raise ValueError("wrong")

        a, b, c, d = (app.tasks[name].si() for name in "abcd")
        chain(task_of(app, fail), group(a, b), c, d).apply_async()
        execute_all(app)
        assert ends() == {"host.task": "failed", "c": "failed", "d": "failed"}

    @has_ids
    def test_failure__of_a_member__with_the_links_of_its_chord(self, app: Celery) -> None:
        def fail(task: Any) -> None:
            raise ValueError("wrong")

        a, b, c = (app.tasks[name].si() for name in "abc")
        chain(chord([task_of(app, fail), a], b), c).apply_async()
        execute_all(app)
        assert ends() == {"host.task": "failed", "a": "completed", "b": "failed", "c": "failed"}

    def test_database_that_is_away(self, app: Celery, caplog: Any) -> None:
        """The task has ended all the same."""

        def end(task: Any) -> None:
            task.request.chain = None

        def refuse(execute: Any, sql: str, params: Any, *args: Any) -> Any:
            if "terminated" in (params or ()):
                raise IntegrityError("refused")
            return execute(sql, params, *args)

        chain(task_of(app, end), app.tasks["a"].si()).apply_async()
        with connection.execute_wrapper(refuse):
            execute_all(app)
        assert ends() == {"host.task": "completed", "a": "queued"}
        assert "could not be ended" in caplog.text

    def test_cancelled__what_follows_a_group(self, app: Celery) -> None:
        """By the id that the caller has, before the group has been published."""
        a, b, c, d = (app.tasks[name].si() for name in "abcd")
        last = chain(a, group(b, c), d).apply_async()
        cancel(last.id)
        execute_all(app)
        assert ends() == {"a": "completed", **dict.fromkeys("bcd", "cancelled")}


class TestPublishedByACancelledRun:
    """Its tasks would be refused when they start; but that can be long after."""

    def test_code_knows(self, app: Celery) -> None:
        def publish(task: Any) -> None:
            cancel(task.request.id)
            run = current_run()
            wait_until(lambda: run is not None and run.cancel_requested, "the flag")
            result = chain(app.tasks["a"].si(), app.tasks["b"].si()).apply_async(countdown=600)
            assert run_of(result.id).stop_state == "never_started"
            ended.append(result.id)

        ended: list[str] = []
        task_of(app, publish).apply_async()
        execute_next(app)
        assert len(ended) == 1
        assert ends() == dict.fromkeys(["host.task", "a", "b"], "cancelled")
        assert run_of(ended[0]).cancellation.requested_by == "tests"

    def test_code_does_not_know_yet(self, app: Celery) -> None:
        def publish(task: Any) -> None:
            cancel(task.request.id)
            app.tasks["a"].apply_async(countdown=600)
            assert ends() == {"host.task": "cancelled", "a": "queued"}

        task_of(app, publish).apply_async()
        execute_next(app)
        assert ends() == {"host.task": "cancelled", "a": "cancelled"}

    def test_code_does_not_know_yet__and_the_cascade_fails(self, app: Celery, caplog: Any) -> None:
        def publish(task: Any) -> None:
            cancel(task.request.id)
            app.tasks["a"].apply_async(countdown=600)

        def refuse(execute: Any, sql: str, params: Any, *args: Any) -> Any:
            if sql.startswith("SELECT") and re.search("parent_id. = %s", sql):
                raise IntegrityError("refused")
            return execute(sql, params, *args)

        task_of(app, publish).apply_async()
        with connection.execute_wrapper(refuse):
            execute_next(app)
        assert ends() == {"host.task": "cancelled", "a": "queued"}
        assert "has published were not cancelled" in caplog.text

    def test_parent_is_read(self, app: Celery) -> None:
        parent = make_run("running", title="above")
        cancel(parent.run_id)
        app.send_task("a", parent_id=parent.run_id, countdown=600)
        assert ends() == {"above": "cancelled", "a": "cancelled"}
