"""The runs of Celery's chains, groups and chords: which run is above which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models.signals import post_save

from django_run_cancel.integrations import recent_runs
from django_run_cancel.models import get_run_model
from tests.helpers import make_run
from tests.services import require_package

require_package("celery")

from celery import Celery, chain, chord, group
from celery.signals import after_task_publish

from tests.integrations.celery_canvas import canvas_app, ends, has_ids, parents, task_of
from tests.integrations.celery_messages import execute_all

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def app() -> Iterator[Celery]:
    with canvas_app() as app:
        yield app


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
