from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest

from tests.backends.services import require_package

require_package("dramatiq")
require_package("dramatiq_abort")

import redis

from django_run_cancel.exceptions import BackendError
from tests.backends import dramatiq_jobs
from tests.backends.contract import (
    TIMEOUT,
    BackendContract,
    BrokerContract,
    Harness,
    wait_until,
)
from tests.backends.services import URLS, require_service
from tests.helpers import make_run


class OverRedis(Harness):
    backend = "django_run_cancel.backends.dramatiq.DramatiqBackend"
    service = "Redis"
    ready = "ready for action"
    actor: ClassVar[str] = "over_redis"

    def options(self) -> dict[str, Any]:
        return {"ACTOR": f"tests.backends.dramatiq_jobs.{self.actor}", "ABORT_AFTER": 1}

    def abort_url(self) -> str:
        return self.proxy.url

    def set_up(self) -> None:
        actor = dramatiq_jobs.make_actor(self.proxy.url, self.abort_url(), self.name)
        setattr(dramatiq_jobs, self.actor, actor)

    def environment(self) -> dict[str, str]:
        assert self.service is not None
        values = (URLS[self.service], URLS["Redis"], self.name)
        return dict(zip(dramatiq_jobs.ADDRESSES, values, strict=True))

    def command(self) -> list[str]:
        module = "tests.backends.dramatiq_jobs:broker"
        return ["-m", "dramatiq", module, "--processes=1", "--threads=1"]

    def tear_down(self) -> None:
        with redis.Redis.from_url(URLS["Redis"]) as client:
            for key in client.scan_iter(f"{self.name}*"):
                client.delete(key)


class OverRabbitMQ(OverRedis):
    service = "RabbitMQ"
    actor = "over_rabbitmq"

    def abort_url(self) -> str:
        return require_service("Redis")

    def tear_down(self) -> None:
        super().tear_down()
        broker = dramatiq_jobs.over_rabbitmq.broker
        for name in (self.name, f"{self.name}.DQ", f"{self.name}.XQ"):
            broker.channel.queue_delete(name)  # type: ignore[attr-defined]
        broker.close()


class TestDramatiqOverRedis(BrokerContract):
    harness_class = OverRedis

    def test_abort__is_acknowledged_and_not_tried_again(self, harness: Harness) -> None:
        harness.online()
        run = self.started("deaf")
        self.cancel(run)
        self.told(run, running=True)
        wait_until(lambda: self.stop_state(run) == "acknowledged", "the acknowledgement", 5)
        assert "raised Abort" in self.trace(run)
        (control,) = self.send("fails_first")
        retried = "Retrying message '{}'".format
        wait_until(lambda: retried(control.external_id) in harness.log.read_text(), "the log", 5)
        assert retried(run.external_id) not in harness.log.read_text()

    @pytest.mark.parametrize(("force", "ended"), [(False, False), (True, True)])
    def test_abort__comes_later_unless_forced(
        self, harness: Harness, force: bool, ended: bool
    ) -> None:
        harness.online()
        self.backend.options["ABORT_AFTER"] = 60
        try:
            run = self.started("deaf")
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


class TestDramatiqOverRabbitMQ(BackendContract):
    harness_class = OverRabbitMQ

    def test_leaves_no_connection_behind(self) -> None:
        broker: Any = dramatiq_jobs.over_rabbitmq.broker
        before = len(broker.connections)
        self.send("short", 3)
        wait_until(lambda: len(broker.connections) <= before, "the end of the connections")

    @pytest.mark.parametrize("how", ["refused", "silent"])
    def test_rabbitmq_is_down(self, harness: Harness, how: str) -> None:
        """Stopping goes through Redis, and needs no RabbitMQ."""
        harness.kill()
        (run,) = self.send("short")
        self.cancel(run)
        harness.proxy.down(how)
        began = time.monotonic()
        with pytest.raises(BackendError):
            self.send("short")
        assert time.monotonic() - began < TIMEOUT + 1
        assert [message.id for message in self.backend.check(deploy=True)] == [
            "django_run_cancel.W005"
        ]
        self.told(run)
        harness.proxy.up()
        assert self.backend.check(deploy=True) == []
        self.drain()
        assert self.trace(run) == []
