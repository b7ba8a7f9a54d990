"""A Dramatiq broker like those that exist: actors with arguments, retries and results."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import django
import dramatiq
from django.apps import apps
from django.conf import settings

if not apps.ready:
    django.setup()

from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from dramatiq_abort import Abortable
from dramatiq_abort.backends import RedisBackend as AbortBackend

from django_run_cancel.execution import checkpoint
from django_run_cancel.integrations.dramatiq import CancellableMiddleware
from django_run_cancel.testing.jobs import TRACE_FOLDER

ADDRESSES = ("DRAMATIQ_BROKER", "DRAMATIQ_REDIS", "DRAMATIQ_NAME", "DRAMATIQ_LINE")


def trace(name: str, text: str) -> None:
    with (Path(os.environ[TRACE_FOLDER]) / name).open("a") as file:
        file.write(f"{text}\n")


def deep_in_a_library(name: str) -> None:
    for _ in range(2_400):
        checkpoint()
        time.sleep(0.05)
    trace(name, "never stopped")


def add_actors(broker: dramatiq.Broker, queue: str) -> None:
    def actor(function: Any, **options: Any) -> Any:
        return dramatiq.actor(function, broker=broker, queue_name=queue, **options)

    def add(x: int, y: int = 2) -> int:
        return x + y

    def works(name: str) -> str:
        message = CurrentMessage.get_current_message()
        assert message is not None
        trace(name, f"started {message.message_id} {os.getpid()}")
        deep_in_a_library(name)
        return "done"

    def never_checks(name: str) -> None:
        trace(name, "started")
        for _ in range(2_400):
            time.sleep(0.05)

    def fails_first(name: str) -> str:
        trace(name, "tried")
        message = CurrentMessage.get_current_message()
        assert message is not None
        if not message.options.get("retries"):
            raise ValueError("once")
        return "second"

    def fails() -> None:
        raise ValueError("always")

    def parent(name: str) -> str:
        child_id: str = broker.get_actor("works").send(name).message_id
        return child_id

    def note_failure(message: dict[str, Any], error: dict[str, Any]) -> None:
        trace("failures", f"{message['actor_name']} {error['type']}")

    actor(note_failure)
    actor(add, store_results=True)
    actor(works, store_results=True, on_failure="note_failure", max_retries=3)
    actor(never_checks, min_backoff=100)
    actor(fails_first, store_results=True, max_retries=2, min_backoff=100)
    actor(fails, store_results=True, max_retries=0, on_failure="note_failure")
    actor(parent, store_results=True)


def make_broker(url: str, redis_url: str, name: str, with_line: bool) -> dramatiq.Broker:
    broker: dramatiq.Broker
    if url.startswith("redis"):
        broker = RedisBroker(url=url, namespace=name)
    else:
        # What Celery writes as // for the virtual host of that name, pika wants escaped.
        broker = RabbitmqBroker(url=f"{url.removesuffix('//')}/%2F")
    broker.add_middleware(CurrentMessage())
    results = RedisBackend(url=redis_url, namespace=f"{name}-results")
    broker.add_middleware(Results(backend=results))
    if with_line:
        broker.add_middleware(CancellableMiddleware())
    aborts = AbortBackend.from_url(redis_url, namespace=f"{name}-aborts:")
    broker.add_middleware(Abortable(backend=aborts))
    add_actors(broker, name)
    return broker


if set(ADDRESSES) <= os.environ.keys():
    settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.5
    url, redis_url, name, line = (os.environ[address] for address in ADDRESSES)
    broker = make_broker(url, redis_url, name, bool(line))
