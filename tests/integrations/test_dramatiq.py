"""Dramatiq actors of a host as runs, with a broker in memory and a worker in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from queue import Queue
from types import ModuleType
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import checkpoint, current_run, execution
from django_run_cancel.execution.ownership import Ownership
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import cancel_now, wait_until
from tests.helpers import IS_MYSQL, make_run
from tests.integrations.helpers import cancel, has_status, run_of
from tests.services import require_package

require_package("dramatiq")

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Interrupt, Retries, SkipMessage
from dramatiq.rate_limits.backends import StubBackend as Limits
from dramatiq.results import ResultFailure, ResultMissing, Results
from dramatiq.results.backends import StubBackend

from django_run_cancel.integrations import dramatiq as integration
from django_run_cancel.integrations.dramatiq import CancellableMiddleware

PATH = "django_run_cancel.backends.dramatiq.DramatiqBackend"


STORES_NONE = dramatiq.__version__.startswith("1.")
"""Dramatiq 1 asks the actor alone whether a result is stored, also for what is skipped."""


class Aborted(Interrupt):
    """What dramatiq-abort raises in a thread, say."""


class Host:
    """A broker with actors, and a worker that processes what waits."""

    def __init__(self, broker: StubBroker) -> None:
        self.broker = broker
        self.results = StubBackend()
        broker.add_middleware(Results(backend=self.results))
        broker.add_middleware(CancellableMiddleware())

    def actor(self, function: Callable[..., Any], **options: Any) -> Any:
        options = {"max_retries": 0, "store_results": True, "min_backoff": 1, **options}
        options.setdefault("actor_name", function.__name__)
        return dramatiq.actor(function, broker=self.broker, **options)

    def work(self) -> None:
        worker = dramatiq.Worker(self.broker, worker_timeout=20, worker_threads=1)
        worker.start()
        try:
            self.broker.join("default", fail_fast=False, timeout=120_000)
            worker.join()
        finally:
            worker.stop()

    def result_of(self, message: Any) -> Any:
        return message.get_result(backend=self.results)

    def take(self) -> list[Any]:
        """Take the messages that wait in the queue."""
        queue = self.broker.queues["default"]
        messages = []
        while not queue.empty():
            messages.append(dramatiq.Message.decode(queue.get()))
            queue.task_done()
        return messages


@pytest.fixture
def host(transactional_db: None) -> Iterator[Host]:
    host = Host(StubBroker())
    yield host
    host.broker.close()


def has_runs() -> bool:
    return get_run_model()._default_manager.exists()


def call_and_disconnect(function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    finally:
        connection.close()


def never() -> None:
    pytest.fail("It started.")


class TestPublishing:
    def test_run_waits_for_its_actor(self, host: Host, settings: Any) -> None:
        settings.RUN_CANCEL_BACKENDS = {"dramatiq": {"BACKEND": PATH}}
        actor = host.actor(never)
        with transaction.atomic():
            message = actor.send()
            assert not has_runs()
        run = run_of(message.message_id)
        assert (run.status, run.title, run.metadata) == ("queued", "never", {})
        assert (run.backend, run.external_id, run.parent) == (
            "dramatiq",
            message.message_id,
            None,
        )

    def test_delayed__one_run(self, host: Host) -> None:
        actor = host.actor(lambda: "now", actor_name="later")
        message = actor.send_with_options(delay=10)
        assert get_run_model()._default_manager.count() == 1
        host.work()
        assert host.result_of(message) == "now"
        assert has_status(message.message_id, "completed")

    def test_priority_and_options_stay(self, host: Host) -> None:
        host.actor(never, priority=7).send_with_options(broker_priority=3)
        (message,) = host.take()
        assert message.options["broker_priority"] == 3

    def test_track_and_describe(self, host: Host, settings: Any) -> None:
        settings.RUN_CANCEL_TRACK = ["crawl"]
        settings.RUN_CANCEL_DESCRIBE = f"{__name__}.describe"
        other = host.actor(lambda: current_run(), actor_name="other")
        crawl = host.actor(lambda path: None, actor_name="crawl")
        with CaptureQueriesContext(connection) as captured:
            message = other.send()
            host.work()
            assert host.result_of(message) is None
            broker_message = other.message()
            host.broker.emit_after("skip_message", broker_message)
            host.broker.emit_before("nack", broker_message)
            assert captured.captured_queries == []
        run = run_of(crawl.send("/a").message_id)
        assert (run.tenant, run.title) == ("acme", "Crawl /a")
        links = [crawl.message("/b"), other.message(), crawl.message("/c")]
        for link in links[1:]:
            link.options["pipe_ignore"] = True
        pipeline = dramatiq.pipeline(links, broker=host.broker).run()
        assert get_run_model()._default_manager.count() == 2
        host.work()
        assert has_status(pipeline.messages[2].message_id, "completed")

    @pytest.mark.skipif(IS_MYSQL, reason="Without UPDATE … RETURNING, some statements are two.")
    def test_statements(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """That of the publisher; the worker's are those of any execution, in its own thread."""
        actor = host.actor(never)
        with CaptureQueriesContext(connection) as captured:
            actor.send()
        kinds = [query["sql"].split()[0] for query in captured.captured_queries]
        assert [kind for kind in kinds if kind not in {"BEGIN", "COMMIT"}] == ["INSERT"]

    def test_dispatched_messages_are_not_tracked(self, host: Host) -> None:
        pytest.importorskip("dramatiq_abort")
        backends = importlib.import_module("django_run_cancel.backends.dramatiq")
        calls: list[str] = []
        actor = host.actor(lambda run_id: calls.append(run_id), actor_name="works_on_a_run")
        module = ModuleType("dramatiq_actors")
        module.actor = actor  # type: ignore[attr-defined]
        sys.modules["dramatiq_actors"] = module
        backend = backends.DramatiqBackend("dramatiq", {"ACTOR": "dramatiq_actors.actor"})
        run = make_run()
        backend.dispatch(run)
        del sys.modules["dramatiq_actors"]
        host.work()
        assert calls == [run.run_id]
        assert get_run_model()._default_manager.count() == 1

    def test_parent(self, host: Host) -> None:
        children = []
        mail = host.actor(lambda: None, actor_name="mail", run_cancel_detached=True)
        child = host.actor(never, actor_name="child")

        def parent() -> None:
            children.append(child.send().message_id)
            children.append(mail.send().message_id)
            children.append(mail.send_with_options(run_cancel_detached=False).message_id)
            with transaction.atomic():
                children.append(child.send().message_id)
                transaction.set_rollback(True)
            running = current_run()
            assert running is not None
            cancel(running.run_id)

        message = host.actor(parent).send()
        host.work()
        above = run_of(message.message_id)
        assert [run_of(task_id).parent for task_id in children] == [above, None, above, above]
        assert [run_of(task_id).status for task_id in children] == [
            "cancelled",
            "completed",
            "cancelled",
            "cancelled",
        ]

    def test_by_name(self, host: Host) -> None:
        """Of an actor that this process does not know; nor does the worker."""
        host.broker.declare_queue("default")
        message: Any = dramatiq.Message("default", "elsewhere", (), {}, {})
        host.broker.enqueue(message)
        assert run_of(message.message_id).title == "elsewhere"
        host.work()
        run = run_of(message.message_id)
        assert (run.status, run.failure_reason) == (
            "failed",
            "dramatiq.errors.ActorNotFound: elsewhere",
        )

    def test_broker_is_away(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody will process the message: it has no run."""
        actor = host.actor(never)

        def refuse(*args: Any) -> None:
            raise ConnectionError("refused")

        with monkeypatch.context() as patch:
            patch.setattr(host.broker.queues["default"], "put", refuse)
            message = actor.message()
            with pytest.raises(ConnectionError):
                host.broker.enqueue(message)
        assert not has_runs()
        host.broker.enqueue(message)
        assert get_run_model()._default_manager.count() == 1
        assert integration.ENQUEUED_AGAIN not in message.options


def describe(name: str, args: Any, kwargs: Any) -> dict[str, Any]:
    return {"tenant": "acme", "title": f"Crawl {args[0]}"} if args else {}


class TestProcessing:
    def test_publisher_that_commits_while_it_starts(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its run is there when it is asked why it could not be started, but not before."""
        with transaction.atomic():
            message = host.actor(lambda: "done", actor_name="works").send()
            transaction.set_rollback(True)
        refusal, commits = Ownership.ownership_error, [partial(make_run, run_id=message.message_id)]

        def refuse(self: Ownership) -> Exception:
            if commits:
                commits.pop()()
            return refusal(self)

        monkeypatch.setattr(Ownership, "ownership_error", refuse)
        host.work()
        assert (commits, host.result_of(message)) == ([], "done")
        assert has_status(message.message_id, "completed")

    def test_is_a_run_of_the_same_id(self, host: Host) -> None:
        def add(x: int, y: int = 2) -> Any:
            running = current_run()
            assert running is not None
            return [x + y, running.run_id]

        actor = host.actor(add)
        message = actor.send(1, y=3)
        host.work()
        assert host.result_of(message) == [4, message.message_id]
        assert run_of(message.message_id).status == "completed"

    def test_direct_call_is_only_the_function(self, host: Host) -> None:
        def inner() -> Any:
            running = current_run()
            return running and running.run_id

        actor = host.actor(inner)
        calls_it = host.actor(lambda: actor(), actor_name="calls_it")
        calls_itself = host.actor(
            lambda deep=True: calls_itself(False) if deep else 1, actor_name="x"
        )
        assert (actor(), actor.fn(), actor.fn.__name__) == (None, None, "inner")
        assert not has_runs()
        messages = [calls_it.send(), calls_itself.send()]
        host.work()
        assert [host.result_of(each) for each in messages] == [messages[0].message_id, 1]

    def test_async_actor(self, host: Host) -> None:
        middleware = pytest.importorskip("dramatiq.middleware")
        if not hasattr(middleware, "AsyncIO"):
            pytest.skip("This version has no async actors.")
        host.broker.add_middleware(middleware.AsyncIO())

        async def waits() -> None:
            running = current_run()
            assert running is not None
            await asyncio.to_thread(call_and_disconnect, cancel_now, running.run)
            checkpoint()

        message = host.actor(waits).send()
        host.work()
        assert run_of(message.message_id).stop_state == "acknowledged"

    def test_cancelled_before_it_starts(self, host: Host) -> None:
        message = host.actor(never).send()
        cancel(message.message_id)
        host.work()
        with pytest.raises(ResultFailure, match="has been cancelled"):
            host.result_of(message)
        assert run_of(message.message_id).stop_state == "never_started"

    @pytest.mark.parametrize("throws", [None, KeyError, (KeyError, OSError)])
    def test_cancelled_while_it_works(self, host: Host, throws: Any, caplog: Any) -> None:
        failures = []

        def works() -> None:
            running = current_run()
            assert running is not None
            cancel_now(running.run)
            checkpoint()

        def told(message: Any, error: Any) -> None:
            failures.append(error["type"])

        host.actor(told)
        options = {} if throws is None else {"throws": throws}
        message = host.actor(works, max_retries=5, on_failure="told", **options).send()
        host.work()
        with pytest.raises(ResultFailure, match="has been cancelled"):
            host.result_of(message)
        assert run_of(message.message_id).stop_state == "acknowledged"
        assert failures == ["MessageCancelled"]
        records = [each for each in caplog.records if each.name.startswith("dramatiq.worker")]
        assert not any(each.exc_info for each in records)

    @pytest.mark.parametrize("is_cancelled", [True, False])
    def test_interrupted(self, host: Host, is_cancelled: bool) -> None:
        tried = []

        def deaf() -> None:
            tried.append(1)
            running = current_run()
            assert running is not None
            if is_cancelled:
                cancel(running.run_id)
            raise Aborted

        message = host.actor(deaf, max_retries=1).send()
        host.work()
        assert len(tried) == (1 if is_cancelled else 2)
        assert run_of(message.message_id).status == ("cancelled" if is_cancelled else "failed")

    def test_retries(self, host: Host) -> None:
        seen: list[str] = []

        def fails() -> None:
            running = current_run()
            assert running is not None
            seen.append(running.run_id)
            raise ValueError("wrong")

        message = host.actor(fails, max_retries=2).send()
        host.work()
        assert seen == [message.message_id] * 3
        run = run_of(message.message_id)
        assert (run.status, run.failure_reason) == ("failed", "ValueError: wrong")

    def test_queued_between_two_tries(self, host: Host) -> None:
        tried = []

        def fails() -> None:
            tried.append(1)
            raise ValueError("wrong")

        message = host.actor(fails, max_retries=5, min_backoff=3_600_000).send()
        worker = dramatiq.Worker(host.broker, worker_timeout=20, worker_threads=1)
        worker.start()
        host.broker.queues["default"].join()
        worker.stop()
        assert run_of(message.message_id).status == "queued"
        cancel(message.message_id)
        host.broker.queues["default.DQ"] = Queue()  # without the delayed message
        host.broker.enqueue(message)
        host.work()
        assert tried == [1]
        with pytest.raises(ResultFailure, match="has been cancelled"):
            host.result_of(message)

    def test_without_retries(self, transactional_db: None) -> None:
        """Dramatiq then acknowledges what has failed, and what was cancelled is rejected."""
        middleware = [each() for each in dramatiq.middleware.default_middleware]
        host = Host(StubBroker([each for each in middleware if not isinstance(each, Retries)]))

        def fails(is_cancelled: bool) -> None:
            running = current_run()
            assert running is not None
            if is_cancelled:
                cancel_now(running.run)
                checkpoint()
            raise ValueError("wrong")

        actor = dramatiq.actor(fails, broker=host.broker, store_results=True)
        failed, cancelled = actor.send(False), actor.send(True)
        host.work()
        assert run_of(failed.message_id).failure_reason == "ValueError: wrong"
        with pytest.raises(ResultFailure, match="has been cancelled"):
            host.result_of(cancelled)

    def test_failure_ends_the_pipeline(self, host: Host) -> None:
        def fails() -> None:
            raise ValueError("wrong")

        links = [host.actor(fails).message()]
        links += [host.actor(never, actor_name=name).message() for name in ("second", "third")]
        messages = dramatiq.pipeline(links, broker=host.broker).run().messages
        assert [run_of(each.message_id).status for each in messages] == ["queued"] * 3
        host.work()
        assert [run_of(each.message_id).status for each in messages] == ["failed"] * 3

    def test_cancelled_link_of_a_pipeline(self, host: Host) -> None:
        first = host.actor(lambda: 1, actor_name="first")
        second = host.actor(lambda number: never(), actor_name="second")
        links = [first.message(), second.message()]
        messages = dramatiq.pipeline(links, broker=host.broker).run().messages
        cancel(messages[1].message_id)
        host.work()
        assert host.result_of(messages[0]) == 1
        assert run_of(messages[1].message_id).stop_state == "never_started"

    def test_group_callback(self, host: Host) -> None:
        host.broker.add_middleware(dramatiq.middleware.GroupCallbacks(Limits()))
        done: list[int] = []
        note = host.actor(lambda: done.append(1), actor_name="note")
        member = host.actor(lambda: 1, actor_name="member")
        group = dramatiq.group([member.message(), member.message()], broker=host.broker)
        group.add_completion_callback(note.message())
        group.run()
        host.work()
        assert done == [1]
        runs = get_run_model()._default_manager.filter(status="completed", parent=None)
        assert runs.count() == 3

    @pytest.mark.parametrize(
        "error",
        [
            RunCancelled("tsk_1"),
            RunInProgress("tsk_1"),
            TransitionNotAllowed("tsk_1", "failed", "completed"),
        ],
    )
    def test_error_of_another_run(self, host: Host, error: Exception) -> None:
        tried = []

        def works() -> None:
            tried.append(1)
            raise error

        message = host.actor(works, max_retries=1).send()
        host.work()
        assert tried == [1, 1]
        assert run_of(message.message_id).status == "failed"

    def test_delivered_twice(self, host: Host) -> None:
        calls: list[int] = []

        def once() -> int:
            calls.append(1)
            return len(calls)

        message = host.actor(once).send()
        host.work()
        host.broker.queues["default"].put(message.encode())
        host.work()
        assert calls == [1]
        assert run_of(message.message_id).status == "completed"
        assert host.result_of(message) == (None if STORES_NONE else 1)

    def test_delayed_and_delivered_twice(self, host: Host) -> None:
        """By the worker that keeps it until its time has come."""
        calls: list[int] = []
        message = host.actor(lambda: calls.append(1), actor_name="once").message()
        host.broker.enqueue(message, delay=10)
        (body,) = host.broker.queues["default.DQ"].queue
        host.work()
        host.broker.queues["default.DQ"].put(body)
        host.work()
        assert calls == [1]

    @pytest.mark.parametrize("is_copied", [False, True])
    def test_enqueued_again_by_the_host(self, host: Host, is_copied: bool) -> None:
        """Some brokers enqueue a copy and leave the object of the host as it is."""
        seen: list[Any] = []
        message = host.actor(lambda: seen.append(current_run()), actor_name="again").message()
        for _ in range(2):
            host.broker.enqueue(message.copy() if is_copied else message)
            host.work()
        assert [running is not None for running in seen] == [True, False]
        assert has_status(message.message_id, "completed")

    def test_enqueued_twice(self, host: Host) -> None:
        calls: list[int] = []
        message = host.actor(lambda: calls.append(1), actor_name="twice").message()
        host.broker.enqueue(message)
        host.broker.enqueue(message)
        host.work()
        assert calls == [1, 1]
        assert has_status(message.message_id, "completed")

    def test_second_is_quicker(self, host: Host) -> None:
        """The first message is the run all the same, and is not taken for a redelivery."""
        seen: list[bool] = []
        message = host.actor(lambda: seen.append(current_run() is not None), actor_name="twice")
        message = message.message()
        for _ in range(2):
            host.broker.enqueue(message)
        for each in reversed(host.take()):
            host.broker.queues["default"].put(each.encode())
            host.work()
        assert seen == [False, True]

    def test_enqueued_again__never_had_a_run(self, host: Host) -> None:
        """The transaction of its publisher was rolled back, say."""
        tried: list[Any] = []

        def fails_first() -> None:
            tried.append(current_run())
            if len(tried) == 1:
                raise ValueError("once")

        message = host.actor(fails_first, max_retries=1).message()
        with transaction.atomic():
            for _ in range(2):
                host.broker.enqueue(message)
            transaction.set_rollback(True)
        host.broker.queues["default"].put(host.take()[1].encode())
        host.work()
        assert [running is not None for running in tried] == [True, True]
        assert has_status(message.message_id, "completed")

    @pytest.mark.parametrize("fails", [False, True])
    def test_puts_its_message_back(self, host: Host, fails: bool) -> None:
        """As long as it is not its turn."""
        calls: list[bool] = []

        def again() -> None:
            calls.append(current_run() is not None)
            if len(calls) < 3:
                host.broker.enqueue(message.copy(), delay=1)
            if fails and len(calls) == 1:
                raise ValueError("wrong")

        message = host.actor(again).message()
        host.broker.enqueue(message)
        host.work()
        wait_until(lambda: len(calls) == 3 or host.work(), "the third time")
        assert calls == [True, False, False]
        assert has_status(message.message_id, "failed" if fails else "completed")

    def test_cancelled_and_enqueued_again(self, host: Host) -> None:
        message = host.actor(never).send()
        cancel(message.message_id)
        host.broker.enqueue(message)
        host.work()
        assert has_status(message.message_id, "cancelled")
        with pytest.raises(ResultFailure):
            host.result_of(message)

    def test_id_that_no_run_can_have(self, host: Host, caplog: Any) -> None:
        calls: list[int] = []
        actor = host.actor(lambda: calls.append(1), actor_name="long")
        for message_id in ("x" * 65, "x\0"):
            host.broker.enqueue(dataclasses.replace(actor.message(), message_id=message_id))
        host.work()
        assert (calls, has_runs()) == ([1, 1], False)
        assert "no run can have the id" in caplog.text
        assert "could not be written" not in caplog.text

    def test_taken_over_while_it_works(self, host: Host) -> None:
        """Its end and its result are those of the other execution."""

        def works() -> None:
            running = current_run()
            assert running is not None
            raise RunInProgress(running.run_id)

        message = host.actor(works, max_retries=5).send()
        host.work()
        if STORES_NONE:
            assert host.result_of(message) is None
        else:
            with pytest.raises(ResultMissing):
                host.result_of(message)

    def test_dead_letter_that_is_enqueued_again(self, host: Host) -> None:
        tried: list[bool] = []

        def fails_first() -> str:
            tried.append(current_run() is not None)
            if len(tried) == 1:
                raise ValueError("once")
            return "second"

        message = host.actor(fails_first).send()
        host.work()
        host.broker.enqueue(message)
        host.work()
        assert (tried, host.result_of(message)) == ([True, False], "second")
        assert run_of(message.message_id).status == "failed"

    @pytest.mark.parametrize("status", ["queued", "running"])
    def test_skipped(self, host: Host, status: str) -> None:
        """By another middleware, such as Abortable."""

        class Skips(dramatiq.Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                raise SkipMessage

        host.broker.add_middleware(Skips())
        message = host.actor(never).message()
        if status == "running":
            make_run("running", run_id=message.message_id)
        host.broker.enqueue(message)
        host.work()
        run = run_of(message.message_id)
        if status == "running":
            assert run.status == "running"
        else:
            assert run.cancellation.reason == "Dramatiq skipped the message."

    def test_arguments_stay_json(self, host: Host) -> None:
        host.actor(never).send()
        (message,) = host.take()
        options = json.loads(message.encode())["options"]
        assert options.pop("run_cancel_enqueued_at") > 1_000_000_000_000
        assert options == {"run_cancel_parent": ""}


def test_actors_that_were_declared_before(host: Host) -> None:
    broker = StubBroker()
    actor = dramatiq.actor(lambda: None, broker=broker, actor_name="before", max_retries=0)
    middleware = CancellableMiddleware()
    broker.add_middleware(middleware)
    message = actor.send()
    host.broker = broker
    host.work()
    assert run_of(message.message_id).status == "completed"
    actor.options["run_cancel_detached"] = True  # @dramatiq.actor() did not know it yet
    with execution(make_run().run_id):
        assert run_of(actor.send().message_id).parent is None
    middleware.after_declare_actor(broker, "before")  # as Dramatiq 1 does it
    assert integration.MessageCancelled in actor.options["throws"]


def test_without_dramatiq_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dramatiq_abort", None)
    try:
        assert len(importlib.reload(integration).NOT_RETRIED) == 1
    finally:
        monkeypatch.undo()
        importlib.reload(integration)
