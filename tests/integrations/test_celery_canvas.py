"""The runs of Celery's chains, groups and chords: which is above which, and how they end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models.signals import post_save

from django_run_cancel.execution import current_run
from django_run_cancel.integrations import recent_runs
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from tests.helpers import make_run
from tests.services import require_package

require_package("celery")

import celery
from celery import Celery, chain, chord, current_app, group
from celery.exceptions import Ignore, Reject
from celery.signals import after_task_publish

from tests.integrations.celery_messages import execute_all, execute_next
from tests.integrations.helpers import cancel, run_of

CLASS = "django_run_cancel.integrations.celery:CancellableTask"

pytestmark = pytest.mark.django_db(transaction=True)

has_ids = pytest.mark.skipif(
    celery.VERSION < (5, 4), reason="Celery 5.3 gives no id to what follows a group in a chain."
)


@pytest.fixture
def app() -> Iterator[Celery]:
    before = current_app._get_current_object()
    app = Celery("canvas", broker="memory://", backend="cache+memory://", task_cls=CLASS)
    app.conf.task_default_queue = "canvas"

    for name in ("a", "b", "c", "d", "e", "f"):
        app.task(shared=False, name=name)(result)
    app.finalize()  # which loads the class of the tasks, and what listens to publishers
    app.control.purge()
    yield app
    app.control.purge()
    before.set_current()


def result(*args: Any) -> int:
    return 1


def task_of(app: Celery, body: Callable[[Any], Any], **options: Any) -> Any:
    def execute(self: Any) -> Any:
        return body(self)

    return app.task(shared=False, name="host.task", bind=True, **options)(execute).si()


def parents() -> dict[str, str | None]:
    """Return the parent of each run, by the names of their tasks."""
    return dict(get_run_model()._default_manager.values_list("title", "parent__title"))


def ends() -> dict[str, str]:
    return dict(get_run_model()._default_manager.values_list("title", "status"))


class TestParents:
    """Before anything is executed, and after all has been: no run gets another parent."""

    def check(self, app: Celery, canvas: Any, first: dict[str, Any], later: Any = ()) -> Any:
        result = canvas.apply_async()
        assert parents() == first
        assert get_run_model()._default_manager.filter(run_id=result.id).exists()
        execute_all(app)
        assert parents() == {**first, **dict(later)}
        assert set(ends().values()) == {"completed"}
        return result

    def test_chain(self, app: Celery) -> None:
        a, b, c = (app.tasks[name].si() for name in "abc")
        self.check(app, chain(a, b, c), {"a": None, "b": "a", "c": "b"})

    def test_chord(self, app: Celery) -> None:
        a, b, c = (app.tasks[name].si() for name in "abc")
        self.check(app, chord([a, b], c), {"c": None, "a": "c", "b": "c"})

    def test_chord_in_one_transaction(self, app: Celery) -> None:
        a, b, c = (app.tasks[name].si() for name in "abc")
        with transaction.atomic():
            chord([a, b], c).apply_async()
            assert parents() == {}
        assert parents() == {"c": None, "a": "c", "b": "c"}

    def test_chord_of_chains(self, app: Celery) -> None:
        a, b, c, d, e = (app.tasks[name].si() for name in "abcde")
        canvas = chord([chain(a, b), chain(c, d)], e)
        self.check(app, canvas, {"e": None, "a": "e", "b": "a", "c": "e", "d": "c"})

    @has_ids
    def test_chord_with_links(self, app: Celery) -> None:
        """The links have their runs from the start: the id that the caller gets is the last's."""
        a, b, c, d, e = (app.tasks[name].si() for name in "abcde")
        canvas = chain(chord([a, b], c), d, e)
        self.check(app, canvas, {"c": None, "a": "c", "b": "c", "d": "c", "e": "d"})

    def test_chord_in_a_chord(self, app: Celery) -> None:
        a, b, c, d, e = (app.tasks[name].si() for name in "abcde")
        canvas = chord([a, chord([b, c], d)], e)
        self.check(app, canvas, {"e": None, "a": "e", "d": "e", "b": "d", "c": "d"})

    @has_ids
    def test_group_in_a_chain(self, app: Celery) -> None:
        """Members have their runs once they are published; the task that follows has it before."""
        a, b, c, d, e = (app.tasks[name].si() for name in "abcde")
        canvas = chain(a, group(b, c), d, e)
        first = {"a": None, "d": "a", "e": "d"}
        self.check(app, canvas, first, later={"b": "d", "c": "d"})

    def test_two_groups_in_a_chain(self, app: Celery) -> None:
        a, b, c, d, e, f = (app.tasks[name].si() for name in "abcdef")
        canvas = chain(a, group(b, c), group(d, e), f)
        later = {"b": "a", "c": "a", "d": "f", "e": "f"}
        self.check(app, canvas, {"a": None, "f": "a"}, later=later)

    @pytest.mark.parametrize("kind", ["task", "chain", "chord"])
    def test_replaced(self, app: Celery, kind: str) -> None:
        a, b, c = (app.tasks[name].si() for name in "abc")
        replacements = {"task": a, "chain": chain(a, b), "chord": chord([a, b], c)}
        replaces = task_of(app, lambda task: task.replace(replacements[kind]))
        new = {"task": {}, "chain": {"a": "host.task"}}
        later = new.get(kind, {"a": "host.task", "b": "host.task"})
        first = {"host.task": None, "d": "host.task"}
        self.check(app, chain(replaces, app.tasks["d"].si()), first, later=later)

    def test_published_by_a_task(self, app: Celery) -> None:
        a, b, c = (app.tasks[name].si() for name in "abc")
        publishes = task_of(app, lambda task: bool(chord([a, b], c).apply_async()))
        first = {"host.task": None}
        later = {"c": "host.task", "a": "c", "b": "c"}
        self.check(app, publishes, first, later=later)

    def test_never_below_a_run_that_is_below_it(self, app: Celery) -> None:
        """Whatever a host publishes: such runs could not be read as a tree any more."""
        above = make_run("running")
        below = make_run("running", parent=above)
        for each in (above, below):
            app.send_task("a", task_id=above.run_id, parent_id=each.run_id)
        above.refresh_from_db()
        assert above.parent is None

    def test_below_the_publisher_although_a_consumer_was_quicker(self, app: Celery) -> None:
        above, quick = make_run("running", tenant="acme"), make_run("running")
        app.send_task("a", task_id=quick.run_id, parent_id=above.run_id)
        quick.refresh_from_db()
        assert (quick.parent, quick.tenant) == (above, "acme")


class TestOfTheHost:
    def test_links_with_a_tenant_and_a_title(self, app: Celery, settings: Any) -> None:
        settings.RUN_CANCEL_DESCRIBE = f"{__name__}.describe"
        chain(app.tasks["a"].si("acme"), app.tasks["b"].si(), app.tasks["c"].si("x")).apply_async()
        runs = get_run_model()._default_manager.order_by("title")
        assert list(runs.values_list("title", "tenant")) == [
            ("a for acme", "acme"),
            ("b", "acme"),
            ("c for x", "x"),
        ]

    def test_link_that_is_described_by_what_no_run_can_have(
        self, app: Celery, settings: Any, caplog: Any
    ) -> None:
        settings.RUN_CANCEL_DESCRIBE = f"{__name__}.describe"
        chain(app.tasks["a"].si("acme"), app.tasks["b"].si(None)).apply_async()
        assert parents() == {"a for acme": None, "b": "a for acme"}
        assert "RUN_CANCEL_DESCRIBE returns fields for b that a run cannot have." in caplog.text

    def test_database_that_returns_no_keys(self, app: Celery, monkeypatch: Any) -> None:
        """As MySQL does."""
        monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
        chain(app.tasks["a"].si(), app.tasks["b"].si(), app.tasks["c"].si()).apply_async()
        assert parents() == {"a": None, "b": "a", "c": "b"}

    def test_database_that_is_away(self, app: Celery, caplog: Any) -> None:
        def refuse(execute: Any, sql: str, *args: Any) -> Any:
            if sql.startswith("INSERT"):
                raise OperationalError("lost")
            return execute(sql, *args)

        with connection.execute_wrapper(refuse):
            chain(app.tasks["a"].si(), app.tasks["b"].si()).apply_async()
        assert parents() == {}
        assert "could not be written when it was published" in caplog.text

    def test_signals_of_the_run_model(self, app: Celery) -> None:
        saved = []

        def note(sender: Any, instance: Any, **kwargs: Any) -> None:
            saved.append(instance.title)

        post_save.connect(note, sender=get_run_model())
        try:
            chain(app.tasks["a"].si(), app.tasks["b"].si()).apply_async()
        finally:
            post_save.disconnect(note, sender=get_run_model())
        assert saved == ["a", "b"]
        assert parents() == {"a": None, "b": "a"}

    def test_body_that_is_deleted_while_its_members_are_published(self, app: Celery) -> None:
        """Its run, which the publisher has kept, is created again."""
        deleted = []

        def delete(sender: str, **kwargs: Any) -> None:
            if not deleted:
                deleted.append(get_run_model()._default_manager.all().delete())

        after_task_publish.connect(delete, sender="a")
        try:
            chord([app.tasks[name].si() for name in "aab"], app.tasks["c"].si()).apply_async()
        finally:
            after_task_publish.disconnect(delete, sender="a")
        assert parents() == {"c": None, "a": "c", "b": "c"}

    def test_only_so_many_runs_are_kept(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(recent_runs, "MAX_RUNS", 2)
        recent_runs.clear()
        runs = [get_run_model()(run_id=name) for name in "xyz"]
        for run in runs:
            recent_runs.add("default", run)
        assert [recent_runs.get("default", run.run_id) for run in runs] == [None, None, runs[2]]
        recent_runs.clear()


def describe(name: str, args: Any, kwargs: Any) -> dict[str, Any]:
    if not args:
        return {}
    return {"title": f"{name} for {args[0]}", "tenant": args[0]}


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
