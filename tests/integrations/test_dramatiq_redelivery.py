"""Messages of Dramatiq actors that are delivered twice, or enqueued again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from django_run_cancel.exceptions import RunInProgress
from django_run_cancel.execution import current_run
from django_run_cancel.testing import wait_until
from tests.integrations.helpers import cancel, has_status, run_of
from tests.services import require_package

require_package("dramatiq")

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import ResultFailure, ResultMissing

from tests.integrations.dramatiq_memory import Host, never

STORES_NONE = dramatiq.__version__.startswith("1.")
"""Dramatiq 1 asks the actor alone whether a result is stored, also for what is skipped."""


@pytest.fixture
def host(transactional_db: None) -> Iterator[Host]:
    host = Host(StubBroker())
    yield host
    host.broker.close()


class TestProcessing:
    def test_delivered_twice(self, host: Host) -> None:
        calls: list[int] = []

        def once() -> int:
            calls.append(1)
            return len(calls)

        message = host.actor(once).send()
        host.work()
        host.broker.queues["default"].put(message.encode())
        host.work()
        assert calls == [1]
        assert run_of(message.message_id).status == "completed"
        assert host.result_of(message) == (None if STORES_NONE else 1)

    def test_delayed_and_delivered_twice(self, host: Host) -> None:
        """By the worker that keeps it until its time has come."""
        calls: list[int] = []
        message = host.actor(lambda: calls.append(1), actor_name="once").message()
        host.broker.enqueue(message, delay=10)
        (body,) = host.broker.queues["default.DQ"].queue
        host.work()
        host.broker.queues["default.DQ"].put(body)
        host.work()
        assert calls == [1]

    @pytest.mark.parametrize("is_copied", [False, True])
    def test_enqueued_again_by_the_host(self, host: Host, is_copied: bool) -> None:
        """Some brokers enqueue a copy and leave the object of the host as it is."""
        seen: list[Any] = []
        message = host.actor(lambda: seen.append(current_run()), actor_name="again").message()
        for _ in range(2):
            host.broker.enqueue(message.copy() if is_copied else message)
            host.work()
        assert [running is not None for running in seen] == [True, False]
        assert has_status(message.message_id, "completed")

    def test_enqueued_twice(self, host: Host) -> None:
        calls: list[int] = []
        message = host.actor(lambda: calls.append(1), actor_name="twice").message()
        host.broker.enqueue(message)
        host.broker.enqueue(message)
        host.work()
        assert calls == [1, 1]
        assert has_status(message.message_id, "completed")

    def test_second_is_quicker(self, host: Host) -> None:
        """The first message is the run all the same, and is not taken for a redelivery."""
        seen: list[bool] = []
        message = host.actor(lambda: seen.append(current_run() is not None), actor_name="twice")
        message = message.message()
        for _ in range(2):
            host.broker.enqueue(message)
        for each in reversed(host.take()):
            host.broker.queues["default"].put(each.encode())
            host.work()
        assert seen == [False, True]

    def test_enqueued_again__never_had_a_run(self, host: Host) -> None:
        """The transaction of its publisher was rolled back, say."""
        tried: list[Any] = []

        def fails_first() -> None:
            tried.append(current_run())
            if len(tried) == 1:
                raise ValueError("once")

        message = host.actor(fails_first, max_retries=1).message()
        with transaction.atomic():
            for _ in range(2):
                host.broker.enqueue(message)
            transaction.set_rollback(True)
        host.broker.queues["default"].put(host.take()[1].encode())
        host.work()
        assert [running is not None for running in tried] == [True, True]
        assert has_status(message.message_id, "completed")

    @pytest.mark.parametrize("fails", [False, True])
    def test_puts_its_message_back(self, host: Host, fails: bool) -> None:
        """As long as it is not its turn."""
        calls: list[bool] = []

        def again() -> None:
            calls.append(current_run() is not None)
            if len(calls) < 3:
                host.broker.enqueue(message.copy(), delay=1)
            if fails and len(calls) == 1:
                raise ValueError("wrong")

        message = host.actor(again).message()
        host.broker.enqueue(message)
        host.work()
        wait_until(lambda: len(calls) == 3 or host.work(), "the third time")
        assert calls == [True, False, False]
        assert has_status(message.message_id, "failed" if fails else "completed")

    def test_cancelled_and_enqueued_again(self, host: Host) -> None:
        message = host.actor(never).send()
        cancel(message.message_id)
        host.broker.enqueue(message)
        host.work()
        assert has_status(message.message_id, "cancelled")
        with pytest.raises(ResultFailure):
            host.result_of(message)

    def test_taken_over_while_it_works(self, host: Host) -> None:
        """Its end and its result are those of the other execution."""

        def works() -> None:
            running = current_run()
            assert running is not None
            raise RunInProgress(running.run_id)

        message = host.actor(works, max_retries=5).send()
        host.work()
        if STORES_NONE:
            assert host.result_of(message) is None
        else:
            with pytest.raises(ResultMissing):
                host.result_of(message)

    def test_dead_letter_that_is_enqueued_again(self, host: Host) -> None:
        tried: list[bool] = []

        def fails_first() -> str:
            tried.append(current_run() is not None)
            if len(tried) == 1:
                raise ValueError("once")
            return "second"

        message = host.actor(fails_first).send()
        host.work()
        host.broker.enqueue(message)
        host.work()
        assert (tried, host.result_of(message)) == ([True, False], "second")
        assert run_of(message.message_id).status == "failed"
