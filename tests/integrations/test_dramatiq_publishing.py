"""Publishing to Dramatiq actors of a host: when and how each message becomes a run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_run_cancel.execution import current_run, execution
from django_run_cancel.models import get_run_model
from tests.helpers import IS_MYSQL, make_run
from tests.integrations.helpers import cancel, has_runs, has_status, run_of
from tests.services import require_package

require_package("dramatiq")

import dramatiq
from dramatiq.brokers.stub import StubBroker

from django_run_cancel.integrations import dramatiq as integration
from django_run_cancel.integrations.dramatiq import CancellableMiddleware
from tests.integrations.dramatiq_memory import Host, never

PATH = "django_run_cancel.backends.dramatiq.DramatiqBackend"


@pytest.fixture
def host(transactional_db: None) -> Iterator[Host]:
    host = Host(StubBroker())
    yield host
    host.broker.close()


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
