"""Actors for the tests: on our side made by the harness, in the worker from its environment."""

from __future__ import annotations

import os

import django
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage
from dramatiq_abort import Abortable
from dramatiq_abort.backends import RedisBackend

ADDRESSES = ("DRAMATIQ_BROKER", "DRAMATIQ_ABORTS", "DRAMATIQ_QUEUE")


def crawl(run_id: str) -> None:
    from django_run_cancel.worker import execution
    from tests.backends import jobs

    def tried_again(error: BaseException) -> bool:
        message = CurrentMessage.get_current_message()
        assert message is not None
        return bool(message.options.get("retries", 0) < jobs.TRIES - 1)

    with execution(run_id, requeue_on=tried_again) as current:
        jobs.body(current)


def make_actor(broker_url: str, abort_url: str, queue: str) -> dramatiq.Actor[[str], None]:
    from django_run_cancel.backends.dramatiq import NEVER_AGAIN
    from tests.backends import jobs

    broker: dramatiq.Broker
    if broker_url.startswith("redis"):
        broker = RedisBroker(url=broker_url, namespace=queue)
    else:
        # What Celery writes as // for the virtual host of that name, pika wants escaped.
        broker = RabbitmqBroker(url=f"{broker_url.removesuffix('//')}/%2F")
    backend = RedisBackend.from_url(abort_url, namespace=f"{queue}:aborts:")
    broker.add_middleware(Abortable(backend=backend))
    broker.add_middleware(CurrentMessage())
    return dramatiq.actor(
        crawl,
        broker=broker,
        queue_name=queue,
        throws=NEVER_AGAIN,
        max_retries=jobs.TRIES - 1,
        min_backoff=1000,
        max_backoff=1000,
    )


over_redis: dramatiq.Actor[[str], None]
over_rabbitmq: dramatiq.Actor[[str], None]

if set(ADDRESSES) <= os.environ.keys():
    django.setup()
    broker = make_actor(*(os.environ[name] for name in ADDRESSES)).broker
