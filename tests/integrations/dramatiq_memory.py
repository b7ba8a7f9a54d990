"""A Dramatiq broker in memory, with a worker in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from django_run_cancel.integrations.dramatiq import CancellableMiddleware


class Host:
    """A broker with actors, and a worker that processes what waits."""

    def __init__(self, broker: StubBroker) -> None:
        self.broker = broker
        self.results = StubBackend()
        broker.add_middleware(Results(backend=self.results))
        broker.add_middleware(CancellableMiddleware())

    def actor(self, function: Callable[..., Any], **options: Any) -> Any:
        options = {"max_retries": 0, "store_results": True, "min_backoff": 1, **options}
        options.setdefault("actor_name", function.__name__)
        return dramatiq.actor(function, broker=self.broker, **options)

    def work(self) -> None:
        worker = dramatiq.Worker(self.broker, worker_timeout=20, worker_threads=1)
        worker.start()
        try:
            self.broker.join("default", fail_fast=False, timeout=120_000)
            worker.join()
        finally:
            worker.stop()

    def result_of(self, message: Any) -> Any:
        return message.get_result(backend=self.results)

    def take(self) -> list[Any]:
        """Take the messages that wait in the queue."""
        queue = self.broker.queues["default"]
        messages = []
        while not queue.empty():
            messages.append(dramatiq.Message.decode(queue.get()))
            queue.task_done()
        return messages


def never() -> None:
    pytest.fail("It started.")
