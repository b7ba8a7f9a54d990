"""Processing messages of Dramatiq actors, with a worker in this process: how their runs end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from queue import Queue
from typing import Any

import pytest
from django.db import connection, transaction

from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import checkpoint, current_run
from django_run_cancel.execution.ownership import Ownership
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import cancel_now
from tests.helpers import make_run
from tests.integrations.helpers import cancel, has_runs, has_status, run_of
from tests.services import require_package

require_package("dramatiq")

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Interrupt, Retries, SkipMessage
from dramatiq.rate_limits.backends import StubBackend as Limits
from dramatiq.results import ResultFailure

from tests.integrations.dramatiq_memory import Host, never


class Aborted(Interrupt):
    """What dramatiq-abort raises in a thread, say."""


@pytest.fixture
def host(transactional_db: None) -> Iterator[Host]:
    host = Host(StubBroker())
    yield host
    host.broker.close()


def call_and_disconnect(function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    finally:
        connection.close()


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

    def test_id_that_no_run_can_have(self, host: Host, caplog: Any) -> None:
        calls: list[int] = []
        actor = host.actor(lambda: calls.append(1), actor_name="long")
        for message_id in ("x" * 65, "x\0"):
            host.broker.enqueue(dataclasses.replace(actor.message(), message_id=message_id))
        host.work()
        assert (calls, has_runs()) == ([1, 1], False)
        assert "no run can have the id" in caplog.text
        assert "could not be written" not in caplog.text

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
