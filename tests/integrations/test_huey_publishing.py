"""Publishing Huey tasks of a host: when and how each becomes a run."""

from __future__ import annotations

import asyncio
import datetime
import importlib
import sys
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from django_run_cancel.execution import current_run
from django_run_cancel.integrations import tracking
from django_run_cancel.models import get_run_model
from tests.helpers import IS_MYSQL, make_run
from tests.services import require_package

require_package("huey")

from huey import api, crontab

from django_run_cancel.backends.huey import HueyBackend
from django_run_cancel.integrations.huey import cancellable
from tests.integrations import huey_host
from tests.integrations.helpers import cancel, has_runs, run_of
from tests.integrations.huey_memory import Published

PATH = "django_run_cancel.backends.huey.HueyBackend"


@pytest.fixture
def huey() -> Published:
    return cancellable(Published("published"))


@pytest.mark.django_db(transaction=True)
class TestPublishing:
    def test_run_waits_for_its_task(self, huey: Published, settings: Any) -> None:
        settings.RUN_CANCEL_BACKENDS = {"huey": {"BACKEND": PATH, "OPTIONS": {"HUEY": "x.huey"}}}
        add = huey.task(name="add")(lambda x: x)
        with transaction.atomic():
            result = add(1)
            assert not has_runs()
        run = run_of(result.id)
        assert (run.status, run.title, run.metadata) == ("queued", f"{__name__}.add", {})
        assert (run.backend, run.external_id, run.parent) == ("huey", result.id, None)

    def test_every_way_to_publish(self, huey: Published) -> None:
        calls: list[Any] = []

        @huey.periodic_task(crontab(), name="tick")
        def tick() -> None:
            calls.append("tick")

        note = huey.task(name="note")(calls.append)
        huey.enqueue(note.s(1, priority=5, expires=60))
        note.map([2, 3])
        note.schedule((4,), delay=3600)
        note.schedule((5,), eta=datetime.datetime(2000, 1, 1))
        (periodic,) = huey.read_periodic(datetime.datetime(2000, 1, 1))
        huey.enqueue(periodic)
        assert get_run_model()._default_manager.filter(status="queued").count() == 6
        huey.work()
        assert sorted(calls, key=str) == [1, 2, 3, 5, "tick"]
        assert get_run_model()._default_manager.filter(status="completed").count() == 5

    def test_scheduled__one_run(self, huey: Published, django_assert_num_queries: Any) -> None:
        result = huey.task(name="later")(lambda: "now").schedule(delay=3600)
        huey.work()
        tomorrow = datetime.datetime.now() + datetime.timedelta(days=1)
        with django_assert_num_queries(0):
            (task,) = huey.read_schedule(tomorrow)
            huey.enqueue(task)
        task = huey.dequeue()
        huey.execute(task, tomorrow)
        assert (result.get(), run_of(result.id).status) == ("now", "completed")

    def test_group_and_chord(self, huey: Published) -> None:
        if not hasattr(api, "chord"):
            pytest.skip("Huey 2 has neither.")
        double = huey.task(name="double")(lambda x: 2 * x)
        total = huey.task(name="total")(sum)
        members = huey.enqueue(api.group([double.s(1), double.s(2)]))
        chord = huey.enqueue(api.chord([double.s(3), double.s(4)], total.s()))
        assert get_run_model()._default_manager.count() == 4
        huey.work()
        assert (members.get(), chord.get()) == ([2, 4], 14)
        assert run_of(chord.callback.id).parent is None
        assert get_run_model()._default_manager.filter(status="completed").count() == 5

    def test_track_and_describe(
        self, huey: Published, settings: Any, django_assert_num_queries: Any
    ) -> None:
        settings.RUN_CANCEL_TRACK = ["*.crawl"]
        settings.RUN_CANCEL_DESCRIBE = f"{__name__}.describe"
        other = huey.task(name="other")(lambda: current_run())
        crawl = huey.task(name="crawl")(lambda path: None)
        with django_assert_num_queries(0):
            pipeline = huey.enqueue(other.s().then(other))
            huey.work()
            revoked = other.s()
            huey.enqueue(revoked)
            huey.revoke(revoked)
            huey.work()
        assert [result.get() for result in pipeline._results] == [None, None]
        run = run_of(crawl("/a").id)
        assert (run.tenant, run.title) == ("acme", "Crawl /a")
        tracked_first = huey.enqueue(crawl.s("/b").then(other).then(crawl, "/c"))
        assert get_run_model()._default_manager.count() == 2
        huey.work()
        assert run_of(tracked_first._results[2].id).status == "completed"

    @pytest.mark.skipif(IS_MYSQL, reason="Without UPDATE … RETURNING, some statements are two.")
    def test_statements(self, huey: Published) -> None:
        task = huey.task(name="task")(lambda: None)
        with CaptureQueriesContext(connection) as captured:
            task()
            huey.work()
        kinds = [query["sql"].split()[0] for query in captured.captured_queries]
        assert [kind for kind in kinds if kind not in {"BEGIN", "COMMIT"}] == [
            "INSERT",
            "UPDATE",
            "UPDATE",
        ]

    def test_dispatched_tasks_are_not_tracked(
        self, huey: Published, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = huey.task(name="works_on_a_run")(lambda run_id: run_id)
        monkeypatch.setattr(huey_host, "task", task, raising=False)
        backend = HueyBackend("huey", {"TASK": "tests.integrations.huey_host.task"})
        run = make_run()
        run.external_id = backend.new_external_id(run)
        backend.dispatch(run)
        huey.work()
        assert huey.result(run.external_id) == run.run_id
        assert get_run_model()._default_manager.count() == 1

    def test_parent(self, huey: Published) -> None:
        children = []

        @huey.task(name="mail", run_cancel_detached=True)
        def mail() -> None:
            pass

        @huey.task(name="child")
        def child() -> None:
            pytest.fail("It started.")

        @huey.task(name="parent")
        def parent() -> None:
            children.extend([child().id, mail().id])
            running = current_run()
            assert running is not None
            cancel(running.run_id)

        result = parent()
        huey.work()
        assert (run_of(children[0]).parent, run_of(children[1]).parent) == (
            run_of(result.id),
            None,
        )
        assert [run_of(task_id).status for task_id in children] == ["cancelled", "completed"]

    def test_storage_is_away(self, huey: Published, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody will execute these tasks: their runs do not stay queued."""

        def refuse(*args: Any) -> None:
            raise ConnectionError("refused")

        task = huey.task(name="task")(lambda x=0: None)
        first = task.s()
        pipeline = first.then(task)
        monkeypatch.setattr(huey.storage, "enqueue", refuse)
        with pytest.raises(ConnectionError):
            huey.enqueue(pipeline)
        for task_id in (first.id, first.on_complete.id):
            run = run_of(task_id)
            assert (run.status, run.failure_reason) == ("failed", "ConnectionError: refused")

    def test_database_is_away(
        self, huey: Published, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        def refuse() -> None:
            raise OperationalError("refused")

        connection.close()
        task = huey.task(name="task")(lambda: 1)
        with monkeypatch.context() as patch:
            patch.setattr(connection, "connect", refuse)
            result = task()
        assert "could not be written when it was published" in caplog.text
        huey.work()
        assert (result.get(), run_of(result.id).status) == (1, "completed")

    @pytest.mark.parametrize("is_usable", [True, False])
    def test_connection_that_was_lost(
        self, huey: Published, monkeypatch: pytest.MonkeyPatch, is_usable: bool
    ) -> None:
        """The scheduler of a consumer publishes rarely, and nobody closes its connection."""
        create_runs, failures = tracking.create_runs, [OperationalError("lost")]

        def fail_once(tasks: Any) -> None:
            if failures:
                raise failures.pop()
            create_runs(tasks)

        monkeypatch.setattr(tracking, "create_runs", fail_once)
        monkeypatch.setattr(connection, "is_usable", lambda: is_usable)
        huey.task(name="task")(lambda: None)()
        monkeypatch.undo()
        assert has_runs() is not is_usable

    def test_from_an_event_loop(self, huey: Published, caplog: Any) -> None:
        """The ORM refuses to be used there: the run is created when the task starts."""
        task = huey.task(name="task")(lambda: 1)

        async def publish() -> Any:
            return task()

        result = asyncio.run(publish())
        assert not has_runs()
        huey.work()
        assert (result.get(), run_of(result.id).status) == (1, "completed")
        assert caplog.text == ""


def describe(name: str, args: Any, kwargs: Any) -> dict[str, Any]:
    return {"tenant": "acme", "title": f"Crawl {args[0]}"}


@pytest.mark.django_db(transaction=True)
class TestOneLine:
    def test_for_one_task(self) -> None:
        huey = Published("single")
        one = cancellable(huey.task(name="one")(lambda: None))
        other = huey.task(name="other")(lambda: None)
        assert run_of(one().id).title == f"{__name__}.one"
        other()
        huey.work()
        assert get_run_model()._default_manager.count() == 1
        assert cancellable(huey) is huey
        other()
        assert get_run_model()._default_manager.count() == 2

    def test_for_something_else(self) -> None:
        with pytest.raises(TypeError, match="takes a Huey or a task of one"):
            cancellable(print)

    def test_django(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.HUEY = Published("django")
        monkeypatch.delitem(sys.modules, "huey.contrib.djhuey", raising=False)
        djhuey = importlib.import_module("huey.contrib.djhuey")
        try:
            cancellable(djhuey.HUEY)
            task = djhuey.db_task(name="task")(lambda: 1)
            on_commit = djhuey.on_commit_task(name="on_commit")(lambda: 2)
            with transaction.atomic():
                results = [djhuey.enqueue(task.s()), on_commit()]
            assert [run_of(result.id).status for result in results] == ["queued"] * 2
            settings.HUEY.work()
            assert [result.get() for result in results] == [1, 2]
            assert [run_of(result.id).status for result in results] == ["completed"] * 2
        finally:
            for name in list(sys.modules):
                if name.startswith("huey.contrib.djhuey"):
                    del sys.modules[name]
