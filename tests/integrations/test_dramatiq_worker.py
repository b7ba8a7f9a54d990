"""Dramatiq actors of a host as runs, with real workers over Redis and RabbitMQ."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from tests.backends.helpers import RabbitMQHarness, RedisHarness
from tests.helpers import IS_SQLITE, make_run
from tests.services import URLS, require_package, require_service

require_package("dramatiq")
require_package("dramatiq_abort")

import dramatiq
from dramatiq.results import ResultFailure
from dramatiq_abort import Abortable, abort

from django_run_cancel.testing.conformance import Harness
from tests.integrations import dramatiq_host
from tests.integrations.helpers import cancel, has_status, run_of

PATH = "django_run_cancel.backends.dramatiq.DramatiqBackend"


class HostHarness(Harness):
    backend = PATH
    ready = "ready for action"
    with_line = True
    actors: dramatiq.Broker

    def set_up(self) -> None:
        assert self.broker_url is not None
        redis_url = require_service("Redis")
        self.actors = dramatiq_host.make_broker(
            self.broker_url, redis_url, self.name, self.with_line
        )

    def environment(self) -> dict[str, str]:
        assert self.broker_url is not None
        line = "1" if self.with_line else ""
        values = (self.broker_url, URLS["Redis"], self.name, line)
        return dict(zip(dramatiq_host.ADDRESSES, values, strict=True))

    def command(self) -> list[str]:
        module = "tests.integrations.dramatiq_host:broker"
        return ["-m", "dramatiq", module, "--processes=1", "--threads=2"]

    def actor(self, name: str) -> Any:
        return self.actors.get_actor(name)

    def result_of(self, message: Any) -> Any:
        backend = self.actors.get_results_backend()
        return message.get_result(backend=backend, block=True, timeout=120_000)

    def traced(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


class OverRedis(HostHarness, RedisHarness):
    pass


class OverRabbitMQ(HostHarness, RabbitMQHarness):
    def tear_down(self) -> None:
        RedisHarness.tear_down(self)  # type: ignore[arg-type]
        for name in (self.name, f"{self.name}.DQ", f"{self.name}.XQ"):
            self.actors.channel.queue_delete(name)  # type: ignore[attr-defined]
        self.actors.close()


@pytest.fixture
def with_line() -> bool:
    return True


@pytest.fixture
def kind() -> type[HostHarness]:
    return OverRedis


@pytest.fixture
def host(
    transactional_db: None, tmp_path: Path, with_line: bool, kind: type[HostHarness]
) -> Iterator[HostHarness]:
    harness = kind(tmp_path, kind.broker(), None)
    harness.with_line = with_line
    harness.set_up()
    try:
        yield harness
    finally:
        harness.kill()
        harness.tear_down()


@pytest.mark.broker
class TestWorker:
    @pytest.mark.parametrize(
        ("kind", "with_line"), [(OverRedis, False), (OverRedis, True), (OverRabbitMQ, True)]
    )
    def test_results_are_as_before(
        self, host: HostHarness, kind: type[HostHarness], with_line: bool
    ) -> None:
        add = host.actor("add")
        host.online()
        added = add.send(1, y=4)
        delayed = add.send_with_options(args=(5,), delay=1000)
        members = dramatiq.group([add.message(1, 1), add.message(2, 2)], broker=host.actors).run()
        links = [add.message(number) for number in (1, 10, 100)]
        pipeline = dramatiq.pipeline(links, broker=host.actors).run()
        retried = host.actor("fails_first").send("retried")
        failed = host.actor("fails").send()
        assert host.result_of(added) == 5
        assert host.result_of(delayed) == 7
        assert list(members.get_results(block=True, timeout=120_000)) == [2, 4]
        assert pipeline.get_result(block=True, timeout=120_000) == 113
        assert host.result_of(retried) == "second"
        with pytest.raises(ResultFailure, match="always"):
            host.result_of(failed)
        wait_until(lambda: host.traced("failures") == ["fails ValueError"], "the callback")
        assert host.traced("retried") == ["tried", "tried"]
        if not with_line:
            assert not get_run_model()._default_manager.exists()
            return
        completed = [added, delayed, *members.children, *pipeline.messages, retried]
        for message in completed:
            wait_until(
                lambda message=message: has_status(message.message_id, "completed"),  # type: ignore[misc]
                "its run",
            )
        assert has_status(failed.message_id, "failed")
        assert run_of(failed.message_id).failure_reason == "ValueError: always"
        assert [run_of(link.message_id).parent for link in pipeline.messages[1:]] == [
            run_of(link.message_id) for link in pipeline.messages[:2]
        ]
        # And one of the callback.
        assert get_run_model()._default_manager.count() == len(completed) + 2

    def test_cancelled_while_it_waits(self, host: HostHarness) -> None:
        message = host.actor("works").send("waits")
        cancel(message.message_id)
        host.online()
        with pytest.raises(ResultFailure, match="has been cancelled"):
            host.result_of(message)
        assert host.traced("waits") == []
        assert run_of(message.message_id).stop_state == "never_started"

    def test_cancelled_deep_in_a_library(self, host: HostHarness) -> None:
        host.online()
        works, add = host.actor("works"), host.actor("add")
        pipeline = dramatiq.pipeline([works.message("works"), add.message(1)], broker=host.actors)
        first, second = pipeline.run().messages
        wait_until(lambda: host.traced("works"), "the start")
        cancel(first.message_id)
        with pytest.raises(ResultFailure, match="has been cancelled"):
            host.result_of(first)
        assert run_of(first.message_id).stop_state == "acknowledged"
        assert run_of(second.message_id).status == "cancelled"
        wait_until(lambda: host.traced("failures") == ["works MessageCancelled"], "the callback")
        assert len(host.traced("works")) == 1
        assert "Traceback" not in host.log.read_text()
        assert "Retrying" not in host.log.read_text()

    def test_children_go_along(self, host: HostHarness) -> None:
        host.online()
        message = host.actor("parent").send("child")
        child_id = host.result_of(message)
        wait_until(lambda: host.traced("child"), "the start of the child")
        assert run_of(child_id).parent == run_of(message.message_id)

    def test_publisher_rolls_back(self, host: HostHarness) -> None:
        """Dramatiq runs the actor all the same, as it did before: the run is made at its start."""
        host.online()
        with transaction.atomic():
            message = host.actor("add").send(1)
            transaction.set_rollback(True)
        assert host.result_of(message) == 3
        assert has_status(message.message_id, "completed")

    def test_consumer_faster_than_the_commit(self, host: HostHarness) -> None:
        host.online()
        with transaction.atomic():
            make_run()
            message = host.actor("add").send(1)
            if not IS_SQLITE:  # which has one writer at a time
                assert host.result_of(message) == 3
        assert host.result_of(message) == 3
        assert has_status(message.message_id, "completed")

    @pytest.mark.parametrize("kind", [OverRabbitMQ])
    def test_redelivered_because_its_worker_was_killed(
        self, host: HostHarness, kind: type[HostHarness]
    ) -> None:
        """It runs again once the heartbeat of the dead execution is old enough."""
        host.online()
        message = host.actor("works").send("killed")
        wait_until(lambda: host.traced("killed"), "the start")
        os.kill(int(host.traced("killed")[0].split()[2]), signal.SIGKILL)
        host.kill()
        host.online()
        wait_until(lambda: len(host.traced("killed")) == 2, "the second start")
        assert run_of(message.message_id).status == "running"
        cancel(message.message_id)
        with pytest.raises(ResultFailure, match="has been cancelled"):
            host.result_of(message)

    def test_dropped_and_aborted_by_the_backend(self, host: HostHarness, settings: Any) -> None:
        name = f"{dramatiq_host.__name__}.{host.name}"
        setattr(dramatiq_host, host.name, host.actor("never_checks"))
        settings.RUN_CANCEL_BACKENDS = {
            "dramatiq": {"BACKEND": PATH, "OPTIONS": {"ACTOR": name, "ABORT_AFTER": 0}}
        }
        waits = host.actor("add").send(1)
        run = run_of(waits.message_id)
        assert (run.backend, run.external_id) == ("dramatiq", waits.message_id)
        cancel(waits.message_id)
        deliver_due()
        host.online()
        assert host.result_of(waits) is None  # as after abort()
        runs = host.actor("never_checks").send("runs")
        wait_until(lambda: host.traced("runs"), "the start")
        cancel(runs.message_id)
        deliver_due()
        wait_until(lambda: run_of(runs.message_id).stop_state == "acknowledged", "the evidence")
        assert host.traced("runs") == ["started"]
        assert "Retrying" not in host.log.read_text()
        assert "Traceback" not in host.log.read_text()
        delattr(dramatiq_host, host.name)

    def test_aborted_by_the_host(self, host: HostHarness) -> None:
        """Dramatiq tries the actor again and then skips it: its run does not stay queued."""
        (abortable,) = (each for each in host.actors.middleware if isinstance(each, Abortable))
        message = host.actor("never_checks").send("aborted")
        waits = host.actor("add").send(1)
        abort(waits.message_id, middleware=abortable)
        host.online()
        wait_until(lambda: host.traced("aborted"), "the start")
        abort(message.message_id, middleware=abortable)
        for aborted in (waits, message):
            wait_until(
                lambda aborted=aborted: has_status(aborted.message_id, "cancelled"),  # type: ignore[misc]
                "the end of its run",
            )
            record = run_of(aborted.message_id).cancellation
            assert (record.requested_by, record.reason) == (
                "dramatiq",
                "Dramatiq skipped the message.",
            )
