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

TRACKED = "DRAMATIQ_TRACKED"
"""The environment variable that says that messages are runs of their own."""

ADDRESSES = ("DRAMATIQ_BROKER", "DRAMATIQ_ABORTS", "DRAMATIQ_QUEUE")


def crawl(run_id: str) -> None:
    from django_run_cancel.execution import execution
    from django_run_cancel.testing import jobs

    def tried_again(error: BaseException) -> bool:
        message = CurrentMessage.get_current_message()
        assert message is not None
        return bool(message.options.get("retries", 0) < jobs.TRIES - 1)

    with execution(run_id, requeue_on=tried_again) as current:
        jobs.run_job(current)


def tracked(title: str) -> None:
    from django_run_cancel.testing import jobs

    jobs.run_current_job()


def make_actor(
    broker_url: str, abort_url: str, queue: str, is_tracked: bool = False
) -> dramatiq.Actor[[str], None]:
    from django_run_cancel.integrations.dramatiq import NOT_RETRIED, CancellableMiddleware
    from django_run_cancel.testing import jobs

    broker: dramatiq.Broker
    if broker_url.startswith("redis"):
        broker = RedisBroker(url=broker_url, namespace=queue)
    else:
        # What Celery writes as // for the virtual host of that name, pika wants escaped.
        broker = RabbitmqBroker(url=f"{broker_url.removesuffix('//')}/%2F")
    backend = RedisBackend.from_url(abort_url, namespace=f"{queue}:aborts:")
    broker.add_middleware(Abortable(backend=backend))
    broker.add_middleware(CurrentMessage())
    if is_tracked:
        broker.add_middleware(CancellableMiddleware())
    return dramatiq.actor(
        tracked if is_tracked else crawl,
        broker=broker,
        queue_name=queue,
        throws=() if is_tracked else NOT_RETRIED,
        max_retries=jobs.TRIES - 1,
        min_backoff=1000,
        max_backoff=1000,
    )


over_redis: dramatiq.Actor[[str], None]
over_rabbitmq: dramatiq.Actor[[str], None]

if set(ADDRESSES) <= os.environ.keys():
    django.setup()
    url, abort_url, queue = (os.environ[name] for name in ADDRESSES)
    broker = make_actor(url, abort_url, queue, TRACKED in os.environ).broker
