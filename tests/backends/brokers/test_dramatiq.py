from __future__ import annotations

import time
from typing import Any, ClassVar, Literal

import pytest

from tests.services import require_package

require_package("dramatiq")
require_package("dramatiq_abort")

import dramatiq
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq_abort import Abortable
from dramatiq_abort.backends import StubBackend

from django_run_cancel.backends import TaskCall
from django_run_cancel.backends.dramatiq import DramatiqBackend
from django_run_cancel.exceptions import BackendError, UnknownTask
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from django_run_cancel.testing.conformance import (
    BackendConformance,
    BrokerConformance,
    Harness,
    TrackedConformance,
)
from tests.backends.brokers import dramatiq_jobs
from tests.backends.helpers import RabbitMQHarness, RedisHarness
from tests.helpers import make_run
from tests.services import URLS, require_service


class DramatiqHarness(Harness):
    backend = "django_run_cancel.backends.dramatiq.DramatiqBackend"
    ready = "ready for action"
    actor: ClassVar[str]
    is_tracked: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        return {"ACTOR": f"tests.backends.brokers.dramatiq_jobs.{self.actor}", "ABORT_AFTER": 1}

    def abort_url(self) -> str:
        return self.proxy.url

    def set_up(self) -> None:
        urls = (self.proxy.url, self.abort_url())
        actor = dramatiq_jobs.make_actor(*urls, self.name, self.is_tracked)
        setattr(dramatiq_jobs, self.actor, actor)

    def publish(self, title: str) -> str:
        message_id: str = getattr(dramatiq_jobs, self.actor).send(title).message_id
        return message_id

    def environment(self) -> dict[str, str]:
        assert self.broker_url is not None
        values = (self.broker_url, URLS["Redis"], self.name)
        names = dict(zip(dramatiq_jobs.ADDRESSES, values, strict=True))
        return {**names, dramatiq_jobs.TRACKED: "1"} if self.is_tracked else names

    def command(self) -> list[str]:
        module = "tests.backends.brokers.dramatiq_jobs:broker"
        return ["-m", "dramatiq", module, "--processes=1", "--threads=1"]


class OverRedis(DramatiqHarness, RedisHarness):
    actor = "over_redis"


class OverRabbitMQ(DramatiqHarness, RabbitMQHarness):
    actor = "over_rabbitmq"

    def abort_url(self) -> str:
        return require_service("Redis")

    def tear_down(self) -> None:
        RedisHarness.tear_down(self)  # type: ignore[arg-type]
        broker = dramatiq_jobs.over_rabbitmq.broker
        for name in (self.name, f"{self.name}.DQ", f"{self.name}.XQ"):
            broker.channel.queue_delete(name)  # type: ignore[attr-defined]
        broker.close()


class TrackedOverRedis(OverRedis):
    is_tracked = True


class TestTracked(TrackedConformance):
    harness_class = TrackedOverRedis


def test_one_alias_for_many_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = StubBroker()
    broker.add_middleware(Abortable(backend=StubBackend()))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    actor = dramatiq.actor(print, broker=broker, actor_name="page")
    monkeypatch.setattr(dramatiq_jobs, "page", actor, raising=False)
    name = f"{dramatiq_jobs.__name__}.page"
    backend = DramatiqBackend("many", {})
    assert backend.check() == []
    call = TaskCall(name, ["/a"], {"depth": 2}, {"max_retries": 1})
    backend.check_call(call)
    run = get_run_model()(run_id="tsk_1", external_id="job")
    backend.dispatch(run, call)
    message = dramatiq.Message.decode(broker.queues["default"].get())
    assert (message.message_id, message.args) == ("job", ("tsk_1", "/a"))
    assert message.kwargs == {"depth": 2}
    assert message.options == {"max_retries": 1, "run_cancel_dispatched": True}
    backend.dispatch(run, call._replace(options={"delay": 60_000}))
    assert broker.queues["default.DQ"].qsize() == 1
    with pytest.raises(TypeError, match="Name a task"):
        backend.check_call(TaskCall())
    with pytest.raises(UnknownTask):
        backend.check_call(TaskCall(f"{dramatiq_jobs.__name__}.os"))
    wrong = DramatiqBackend("wrong", {"ACTOR": f"{name}s"})
    assert [found.id for found in wrong.check()] == ["django_run_cancel.E015"]


class TestDramatiqOverRedis(BrokerConformance):
    harness_class = OverRedis

    def test_abort__is_acknowledged_and_not_tried_again(self, harness: Harness) -> None:
        harness.online()
        run = self.started("never_checks")
        self.cancel(run)
        self.told(run, running=True)
        self.wait_for_stop_state("acknowledged", run)
        assert "raised Abort" in self.trace(run)
        (control,) = self.send("fails_once")
        retried = "Retrying message '{}'".format
        wait_until(lambda: retried(control.external_id) in harness.log.read_text(), "the log")
        assert retried(run.external_id) not in harness.log.read_text()

    @pytest.mark.parametrize(("force", "ended"), [(False, False), (True, True)])
    def test_abort__comes_later_unless_forced(
        self, harness: Harness, force: bool, ended: bool
    ) -> None:
        harness.online()
        self.backend.options["ABORT_AFTER"] = 60
        try:
            run = self.started("never_checks")
            self.cancel(run)
            self.told(run, running=True, force=force)
            time.sleep(1)
            assert ("left" in self.trace(run)) is ended
        finally:
            self.backend.options["ABORT_AFTER"] = 1

    def test_requests_are_kept(self, harness: Harness) -> None:
        run = make_run(external_id="kept")
        self.told(run)
        with redis.Redis.from_url(URLS["Redis"]) as client:
            ttl = client.ttl(f"{harness.name}:aborts:cancel:kept")
        assert 7 * 86400 - 60 < ttl <= 7 * 86400

    def test_without_the_middleware(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dramatiq_jobs.over_redis.broker, "middleware", [])
        (outcome,) = self.stop(make_run())
        assert isinstance(outcome, LookupError)
        (message,) = self.backend.check()
        assert message.id == "django_run_cancel.E010"


class TestDramatiqOverRabbitMQ(BackendConformance):
    harness_class = OverRabbitMQ

    def test_leaves_no_connection_behind(self) -> None:
        broker: Any = dramatiq_jobs.over_rabbitmq.broker
        before = len(broker.connections)
        self.send("returns", 3)
        wait_until(lambda: len(broker.connections) <= before, "the end of the connections")

    @pytest.mark.parametrize("how", ["refused", "silent"])
    def test_rabbitmq_is_down(self, harness: Harness, how: Literal["refused", "silent"]) -> None:
        """Stopping goes through Redis, and needs no RabbitMQ."""
        harness.kill()
        (run,) = self.send("returns")
        self.cancel(run)
        harness.proxy.down(how)
        with pytest.raises(BackendError):
            self.send("returns")
        assert [message.id for message in self.backend.check(deploy=True)] == [
            "django_run_cancel.W005"
        ]
        self.told(run)
        harness.proxy.up()
        assert self.backend.check(deploy=True) == []
        self.drain()
        assert self.trace(run) == []
