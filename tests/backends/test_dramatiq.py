from __future__ import annotations

from typing import Any, ClassVar

from tests.backends.services import require_package

require_package("dramatiq")
require_package("dramatiq_abort")

import redis  # noqa: E402

from tests.backends import dramatiq_jobs  # noqa: E402
from tests.backends.contract import BackendContract, BrokerContract, Harness  # noqa: E402
from tests.backends.services import URLS, require_service  # noqa: E402


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


class TestDramatiqOverRabbitMQ(BackendContract):
    harness_class = OverRabbitMQ
