"""Harnesses of executors whose jobs wait in Redis or RabbitMQ."""

from __future__ import annotations

from redis import Redis

from django_run_cancel.testing.conformance import Harness
from tests.services import URLS, require_service


class RedisHarness(Harness):
    """Jobs wait in Redis, under keys that have the name of the harness in them."""

    @classmethod
    def broker(cls) -> str:
        return require_service("Redis")

    def tear_down(self) -> None:
        with Redis.from_url(URLS["Redis"]) as connection:
            if keys := list(connection.scan_iter(match=f"*{self.name}*", count=1000)):
                connection.delete(*keys)


class RabbitMQHarness(Harness):
    """Jobs wait in RabbitMQ."""

    @classmethod
    def broker(cls) -> str:
        return require_service("RabbitMQ")
