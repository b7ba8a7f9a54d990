"""Huey tasks of a host as runs, in this process."""

from __future__ import annotations

import asyncio
import datetime
import importlib
import sys
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.execution import current_run
from django_run_cancel.integrations import tracking
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import cancel_now
from tests.helpers import IS_MYSQL, make_run
from tests.services import require_package

require_package("huey")

from huey import MemoryHuey, api, crontab
from huey.api import Huey
from huey.exceptions import CancelExecution, RetryTask, TaskException

from django_run_cancel.backends.huey import HueyBackend
from django_run_cancel.integrations import huey as integration
from django_run_cancel.integrations.huey import cancellable
from tests.integrations import huey_host
from tests.integrations.helpers import cancel, has_status, run_of

PATH = "django_run_cancel.backends.huey.HueyBackend"


def has_runs() -> bool:
    return get_run_model()._default_manager.exists()


class Published(MemoryHuey):  # type: ignore[misc]
    """A Huey in memory whose consumer is this process."""

    def work(self) -> None:
        """Execute the tasks that are enqueued, and those that these enqueue."""
        while (task := self.dequeue()) is not None:
            self.execute(task)


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
class TestExecuting:
    def test_failure_ends_the_pipeline(self, huey: Published) -> None:
        @huey.task(name="fails")
        def fails() -> None:
            raise ValueError("wrong")

        task = huey.task(name="task")(lambda: pytest.fail("It started."))
        results = huey.enqueue(fails.s().then(task).then(task))._results
        huey.work()
        assert [run_of(result.id).status for result in results] == ["failed"] * 3
        assert run_of(results[2].id).failure_reason == "ValueError: wrong"

    @pytest.mark.parametrize(
        ("error", "retries", "status"),
        [
            (ValueError, 0, "failed"),
            (ValueError, 1, "queued"),
            (RetryTask, 0, "queued"),
            (lambda: CancelExecution(retry=True), 0, "queued"),
            (lambda: CancelExecution(retry=False), 1, "failed"),
            (CancelExecution, 1, "queued"),
            (CancelExecution, 0, "failed"),
            (KeyboardInterrupt, 1, "failed"),
        ],
    )
    def test_retry(self, huey: Published, error: Any, retries: int, status: str) -> None:
        tried = []

        @huey.task(name="task", retries=retries)
        def task() -> str:
            tried.append(1)
            if len(tried) == 1:
                raise error()
            return "second"

        link = huey.task(name="link")(lambda text: text)
        first, second = huey.enqueue(task.s().then(link))._results
        huey.execute(huey.dequeue())
        assert (run_of(first.id).status, run_of(second.id).status) == (
            status,
            "queued" if status == "queued" else "failed",
        )
        huey.work()
        if status == "queued":
            assert (tried, second.get()) == ([1, 1], "second")
            assert has_status(first.id, "completed")

    def test_rate_limit(self, huey: Published) -> None:
        if not integration.RATE_LIMITED:
            pytest.skip("Huey 2 has no rate limits.")
        limited = {retry: self.limited(huey, retry) for retry in (False, True)}
        statuses = {retry: run_of(task_id).status for retry, task_id in limited.items()}
        assert statuses == {False: "failed", True: "queued"}

    def limited(self, huey: Any, retry: bool) -> str:
        @huey.task(name=f"limited_{retry}")
        @huey.rate_limit(f"limit_{retry}", limit=0, per=3600, retry=retry)
        def limited() -> None:
            pytest.fail("It started.")

        task_id: str = limited().id
        huey.execute(huey.dequeue())
        return task_id

    def test_cancelled_between_two_tries(self, huey: Published) -> None:
        tried = []

        @huey.task(name="task", retries=5)
        def task() -> None:
            tried.append(1)
            raise ValueError("wrong")

        result = task()
        huey.execute(huey.dequeue())
        cancel(result.id)
        huey.work()
        assert tried == [1]
        with pytest.raises(TaskException, match="has been cancelled"):
            result.get()

    def test_same_id_again(self, huey: Published) -> None:
        """Huey delivers a task once: whoever enqueues its id again wants it executed again."""
        handled: list[Any] = []

        @huey.task(name="fails", retries=2)
        def fails() -> None:
            raise ValueError("wrong")

        @huey.task(name="handler")
        def handler(*args: Any) -> None:
            handled.append(current_run() is not None)
            if len(handled) == 2:
                raise RunCancelled("tsk_1")

        failing = fails.s().error(handler)
        huey.enqueue(failing)
        huey.work()
        assert handled == [True, False, False]
        assert run_of(failing.on_error.id).status == "completed"

    @pytest.mark.parametrize("task_id", ["x" * 65, "x\0", 7])
    def test_id_that_no_run_can_have(self, huey: Published, task_id: Any, caplog: Any) -> None:
        calls: list[int] = []
        note = huey.task(name="note")(calls.append)
        fails = huey.task(name="fails")(int)
        alone, link = note.s(1), note.s()
        alone.id = link.id = task_id
        huey.enqueue(alone)
        head = fails.s("no number")
        head.on_complete = link
        huey.enqueue(head)
        huey.work()
        assert calls == [1]
        assert [run.run_id for run in get_run_model()._default_manager.all()] == [head.id]
        assert run_of(head.id).status == "failed"
        assert "could not be written" not in caplog.text

    @pytest.mark.parametrize(
        "error", [RunCancelled("tsk_1"), TransitionNotAllowed("tsk_1", "failed", "completed")]
    )
    def test_error_of_another_run(self, huey: Published, error: Exception) -> None:
        @huey.task(name="task")
        def task() -> None:
            raise error

        result = task()
        huey.work()
        assert run_of(result.id).status == "failed"
        with pytest.raises(TaskException, match="tsk_1"):
            result.get()

    def test_revoked__never_published_here(self, huey: Published) -> None:
        """A task without a run, such as one of a publisher that has rolled back."""
        task = huey.task(name="task")(lambda: pytest.fail("It started."))
        with transaction.atomic():
            result = task()
            transaction.set_rollback(True)
        result.revoke()
        huey.work()
        assert not has_runs()
        assert result.get() is None

    def test_revoked_while_another_execution_runs(self, huey: Published) -> None:
        task = huey.task(name="task")(lambda: pytest.fail("It started.")).s()
        make_run("running", run_id=task.id)
        huey.enqueue(task)
        huey.revoke(task)
        huey.work()
        assert run_of(task.id).status == "running"

    def test_expired(self, huey: Published) -> None:
        task = huey.task(name="task")(lambda: pytest.fail("It started."))
        result = huey.enqueue(task.s(expires=datetime.datetime(2000, 1, 1)))
        huey.work()
        assert run_of(result.id).cancellation.reason == "Huey dropped the task: expired."

    def test_hook_of_the_host_cancels(self, huey: Published) -> None:
        @huey.pre_execute()
        def refuse(task: Any) -> None:
            raise CancelExecution

        result = huey.task(name="task")(lambda: pytest.fail("It started."))()
        huey.work()
        assert run_of(result.id).cancellation.reason == "Huey dropped the task: canceled."

    @pytest.mark.parametrize(
        ("kind", "results", "stored"),
        [("task", True, 2), ("task", False, 0), ("periodic_task", True, 0)],
    )
    def test_cancelled_and_dropped(self, kind: str, results: bool, stored: int) -> None:
        """Who waits for the result of the task, or of its pipeline, is told."""
        huey = cancellable(Published("published", results=results))
        arguments = [crontab()] if kind == "periodic_task" else []
        task = getattr(huey, kind)(*arguments, name="task")(lambda: None)
        pipeline = task.s().then(task)
        huey.enqueue(pipeline)
        cancel(pipeline.id)
        huey.revoke(pipeline, revoke_once=True)
        huey.work()
        assert huey.result_count() == stored
        assert run_of(pipeline.id).cancellation.requested_by == "tests"

    def test_run_cannot_be_cancelled(
        self, huey: Published, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise OperationalError("refused")

        result = huey.task(name="task")(lambda: None)()
        monkeypatch.setattr(integration, "cancel_runs", refuse)
        result.revoke()
        huey.work()
        assert f"The run of task {result.id} could not be cancelled." in caplog.text


@pytest.mark.django_db(transaction=True)
class TestImmediate:
    @pytest.fixture
    def huey(self) -> Huey:
        return cancellable(MemoryHuey("immediate", immediate=True))

    def test_is_a_run_of_the_same_id(self, huey: Huey) -> None:
        seen = []

        @huey.task(name="inner")
        def inner() -> None:
            pass

        @huey.task(name="add", context=True)
        def add(x: int, y: int = 2, task: Any = None) -> int:
            running = current_run()
            assert running is not None
            assert task.id == running.run_id
            seen.append(inner().id)
            return x + y

        result = add(1, y=3)
        assert result.get() == 4
        run = run_of(result.id)
        assert (run.status, run.backend) == ("completed", "")
        assert run_of(seen[0]).parent == run

    def test_in_an_event_loop__without_a_run(self, huey: Huey, caplog: Any) -> None:
        """The ORM is refused there."""
        seen: list[Any] = []
        note = huey.task(name="note")(lambda: seen.append(current_run()))

        async def call() -> None:
            note()
            note.revoke()
            note()

        asyncio.run(call())
        assert (seen, has_runs()) == ([None], False)
        assert "could not be cancelled" not in caplog.text

    def test_direct_call_is_only_the_function(self, huey: Huey) -> None:
        task = huey.task(name="task")(lambda x: (x, current_run()))
        assert task.call_local(1) == (1, None)
        assert not has_runs()

    def test_retries_and_pipeline(self, huey: Huey) -> None:
        tried = []

        @huey.task(name="fails_first", retries=1)
        def fails_first() -> int:
            tried.append(1)
            if len(tried) == 1:
                raise ValueError("once")
            return 1

        add = huey.task(name="add")(lambda x, y: x + y)
        results = huey.enqueue(fails_first.s().then(add, 2))._results
        assert results[1].get() == 3
        assert [run_of(result.id).status for result in results] == ["completed"] * 2

    def test_cancelled_while_it_runs(self, huey: Huey) -> None:
        @huey.task(name="cancels_itself")
        def cancels_itself() -> None:
            running = current_run()
            assert running is not None
            cancel_now(running.run)
            running.checkpoint()

        result = cancels_itself()
        with pytest.raises(TaskException, match="has been cancelled"):
            result.get()
        assert run_of(result.id).stop_state == "acknowledged"


@pytest.mark.django_db
def test_immediate_in_a_transaction() -> None:
    """As in a TestCase."""
    huey = cancellable(MemoryHuey("immediate", immediate=True))
    result = huey.task(name="task")(lambda: 1)()
    assert (result.get(), run_of(result.id).status) == (1, "completed")


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
