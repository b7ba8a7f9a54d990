"""The backend for Celery with workers: Redis and RabbitMQ, processes and threads."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import pytest

from django_run_cancel.backends import StopOutcome, TaskCall
from django_run_cancel.exceptions import UnknownTask
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import wait_until
from django_run_cancel.testing.conformance import (
    BrokerConformance,
    ExecutorCase,
    Harness,
    TrackedConformance,
    WorkerConformance,
)
from tests.backends.helpers import RabbitMQHarness, RedisHarness
from tests.helpers import statuses
from tests.services import require_package

require_package("celery")


from django_run_cancel.backends.celery import CeleryBackend
from tests.backends.brokers import celery_jobs


class CeleryHarness(Harness):
    backend = "django_run_cancel.backends.celery.CeleryBackend"
    ready = " ready."
    pool: ClassVar[str] = "prefork"
    concurrency: ClassVar[int] = 1

    def set_up(self) -> None:
        self.app = celery_jobs.make_app(self.name, self.proxy.url)
        # Of another name each time: a backend that is known by its options is not made again.
        setattr(celery_jobs, self.name, self.app)

    def options(self) -> dict[str, Any]:
        return {
            "APP": f"tests.backends.brokers.celery_jobs.{self.name}",
            "TASK": celery_jobs.TASK,
            "POOL": self.pool,
        }

    def publish(self, title: str) -> str:
        task_id: str = self.app.tasks[celery_jobs.TRACKED].delay(title).id
        return task_id

    def environment(self) -> dict[str, str]:
        assert self.broker_url is not None
        return {"CELERY_NAME": self.name, "CELERY_URL": self.broker_url}

    def command(self) -> list[str]:
        options = [
            f"--concurrency={self.concurrency}",
            "--loglevel=INFO",
            "--without-gossip",
            "--without-mingle",
        ]
        return [
            "-m",
            "celery",
            "-A",
            "tests.backends.brokers.celery_jobs:app",
            "worker",
            "-P",
            self.pool,
            *options,
        ]

    def tear_down(self) -> None:
        assert self.broker_url is not None
        app = celery_jobs.make_app(self.name, self.broker_url)
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            app.amqp.queues[self.name](channel).delete()
            if self.broker_url.startswith("amqp"):
                for exchange in (self.name, f"{self.name}.events", f"{self.name}.control.pidbox"):
                    channel.exchange_delete(exchange)
                channel.exchange_delete(f"reply.{self.name}.control.pidbox")
        app.close()
        super().tear_down()


class RedisPrefork(CeleryHarness, RedisHarness):
    pass


class RabbitMQPrefork(CeleryHarness, RabbitMQHarness):
    pass


class RedisSignal(CeleryHarness, RedisHarness):
    def options(self) -> dict[str, Any]:
        return {**super().options(), "QUEUE": self.name, "SIGNAL": "SIGTERM"}


class RedisThreads(CeleryHarness, RedisHarness):
    pool = "threads"
    checks = ["django_run_cancel.W006"]


class RabbitMQThreads(CeleryHarness, RabbitMQHarness):
    pool = "threads"
    checks = ["django_run_cancel.W006"]


class RedisPrefetching(CeleryHarness, RedisHarness):
    def environment(self) -> dict[str, str]:
        return {**super().environment(), "CELERY_PREFETCH": "4"}


class TestTracked(TrackedConformance):
    harness_class = RedisPrefork


class TestRedisPrefork(BrokerConformance):
    harness_class = RedisPrefork

    def test_one_alias_for_many_tasks(self, harness: Harness) -> None:
        harness.online()
        options = {"APP": harness.options()["APP"]}
        backend = CeleryBackend("many", options)
        assert backend.check() == []
        call = TaskCall(celery_jobs.PAGE, ["/a"], {"depth": 2}, {"countdown": 0, "priority": 1})
        backend.check_call(call)
        run = self.make_run(external_id=str(uuid.uuid4()))
        backend.dispatch(run, call)
        self.wait_for(RunStatus.COMPLETED, run)
        assert self.trace(run) == ["page /a 2"]
        with pytest.raises(UnknownTask, match="'many' has no task 'gone'"):
            backend.check_call(TaskCall("gone"))
        with pytest.raises(TypeError, match="Name a task"):
            backend.check_call(TaskCall())
        with pytest.raises(TypeError, match="takes no task_id"):
            backend.check_call(call._replace(options={"task_id": "a"}))
        wrong = CeleryBackend("wrong", {**options, "TASK": "gone"})
        assert [found.id for found in wrong.check()] == ["django_run_cancel.E015"]


class TestRabbitMQPrefork(BrokerConformance):
    harness_class = RabbitMQPrefork


class TestRedisSignal(WorkerConformance):
    harness_class = RedisSignal

    def test_running__delivery_escalates(self, harness: Harness, settings: Any) -> None:
        """A task that survives the signal is out of reach: its worker has forgotten it."""
        harness.online()
        run = self.started("swallows_exceptions")
        self.cancel(run)
        self.told(run, running=True)
        wait_until(lambda: "swallowed SystemExit" in self.trace(run), "the signal")
        assert self.told(run, running=True, force=True) == [StopOutcome.TOLD_ONCE]
        self.goes_on(run)


class TestRedisPrefetching(ExecutorCase):
    harness_class = RedisPrefetching

    def test_reserved__is_not_said_to_be_killed(self, harness: RedisPrefetching) -> None:
        """As one that was delivered again, while the worker that runs it is cut off."""
        harness.online()
        busy = self.started("never_checks")
        (reserved,) = self.send("returns")
        inspect = harness.app.control.inspect()
        wait_until(
            lambda: (
                [task["id"] for tasks in (inspect.reserved() or {}).values() for task in tasks]
                == [reserved.external_id]
            ),
            "the task to be reserved",
        )
        self.cancel(busy, reserved)
        assert self.told(reserved, busy, running=True, force=True) == [
            StopOutcome.TOLD_ONCE,
            StopOutcome.STOPPED,
        ]


class RedisMany(RedisPrefetching):
    concurrency = 4

    def options(self) -> dict[str, Any]:
        return {**super().options(), "TASK": celery_jobs.QUICK}


class TestRedisMany(ExecutorCase):
    harness_class = RedisMany

    def test_tried_again_at_once__no_try_is_lost(self, harness: Harness) -> None:
        """The next try may be taken before this one has been left."""
        harness.online()
        runs = self.send("", 60)
        wait_until(
            lambda: set(statuses(*runs)) == {"completed"},
            "all to be completed",
        )


class TestRedisThreads(WorkerConformance):
    harness_class = RedisThreads


class TestRabbitMQThreads(WorkerConformance):
    harness_class = RabbitMQThreads
