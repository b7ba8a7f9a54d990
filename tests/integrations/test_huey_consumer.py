"""Huey tasks of a host as runs, with a real consumer over Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import get_run_model
from django_run_cancel.testing import wait_until
from tests.backends.helpers import RedisHarness
from tests.helpers import IS_SQLITE, make_run
from tests.services import require_package

require_package("huey")

from huey.api import Huey
from huey.exceptions import TaskException

from tests.integrations import huey_host
from tests.integrations.helpers import cancel, has_status, run_of

PATH = "django_run_cancel.backends.huey.HueyBackend"


class HostHarness(RedisHarness):
    backend = PATH
    ready = "Huey consumer started"
    with_line = True
    huey: Huey

    def set_up(self) -> None:
        assert self.broker_url is not None
        self.huey, self.tasks = huey_host.make_huey(self.name, self.broker_url, self.with_line)

    def environment(self) -> dict[str, str]:
        assert self.broker_url is not None
        return {
            "HUEY_NAME": self.name,
            "HUEY_URL": self.broker_url,
            "HUEY_LINE": "1" if self.with_line else "",
        }

    def command(self) -> list[str]:
        name = "tests.integrations.huey_host.huey"
        return ["-m", "huey.bin.huey_consumer", name, "-k", "thread", "-w", "2"]

    def tear_down(self) -> None:
        self.huey.storage.flush_all()
        self.huey.storage.pool.disconnect()
        super().tear_down()

    def traced(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def with_line() -> bool:
    return True


@pytest.fixture
def host(transactional_db: None, tmp_path: Path, with_line: bool) -> Iterator[HostHarness]:
    harness = HostHarness(tmp_path, HostHarness.broker(), None)
    harness.with_line = with_line
    harness.set_up()
    try:
        yield harness
    finally:
        harness.kill()
        harness.tear_down()


def result_of(result: Any) -> Any:
    return result.get(blocking=True, timeout=120)


@pytest.mark.broker
class TestConsumer:
    @pytest.mark.parametrize("with_line", [False, True])
    def test_results_are_as_before(self, host: HostHarness, with_line: bool) -> None:
        add, fails = host.tasks["add"], host.tasks["fails"]
        host.online()
        added = add(1, y=4)
        delayed = add.schedule((5,), delay=1)
        mapped = add.map([(1, 1), (2, 2)])
        pipeline = host.huey.enqueue(add.s(1).then(add, 10).then(add, 100))
        retried = host.tasks["fails_first"]("retried")
        failed = host.huey.enqueue(fails.s().error(host.tasks["note_error"], "failed"))
        assert result_of(added) == 5
        assert result_of(delayed) == 7
        assert mapped.get(blocking=True, timeout=120) == [2, 4]
        assert pipeline.get(blocking=True, timeout=120) == [3, 13, 113]
        wait_until(lambda: host.traced("retried") == ["tried", "tried"], "the second try")
        wait_until(lambda: host.traced("failed") == ["handled ValueError"], "the handler")
        with pytest.raises(TaskException, match="always"):
            result_of(failed)
        ended = ["add complete"] * 7 + ["fails error", "note_error complete"]
        ended += ["fails_first error", "fails_first complete"]
        wait_until(lambda: sorted(host.traced("signals")) == sorted(ended), "the signals")
        if not with_line:
            assert not get_run_model()._default_manager.exists()
            return
        completed = [added, delayed, *mapped._results, *pipeline._results, retried]
        for result in completed:
            wait_until(lambda result=result: has_status(result.id, "completed"), "its run")  # type: ignore[misc]
        assert run_of(failed.id).failure_reason == "ValueError: always"
        assert [run_of(link.id).parent for link in pipeline._results[1:]] == [
            run_of(link.id) for link in pipeline._results[:2]
        ]
        # And one of the error handler.
        assert get_run_model()._default_manager.count() == len(completed) + 2

    def test_cancelled_while_it_waits(self, host: HostHarness) -> None:
        works, add = host.tasks["works"], host.tasks["add"]
        results = host.huey.enqueue(works.s("waits").then(add, 1))
        first, second = results._results
        cancel(first.id)
        host.online()
        with pytest.raises(TaskException, match="has been cancelled"):
            result_of(first)
        wait_until(lambda: host.traced("signals") == ["works canceled"], "the signal")
        assert host.traced("waits") == []
        assert run_of(first.id).stop_state == "never_started"
        assert run_of(second.id).status == "cancelled"

    def test_cancelled_deep_in_a_library(self, host: HostHarness) -> None:
        works, note_error = host.tasks["works"], host.tasks["note_error"]
        host.online()
        result = host.huey.enqueue(works.s("works").error(note_error, "told"))
        wait_until(lambda: host.traced("works"), "the start")
        cancel(result.id)
        with pytest.raises(TaskException, match="has been cancelled"):
            result_of(result)
        wait_until(lambda: run_of(result.id).stop_state == "acknowledged", "the evidence")
        wait_until(lambda: host.traced("told") == ["handled CancelExecution"], "the handler")
        assert len(host.traced("works")) == 1
        assert "Traceback" not in host.log.read_text()

    def test_children_go_along(self, host: HostHarness) -> None:
        host.online()
        result = host.tasks["parent"]("child")
        child_id = result_of(result)
        wait_until(lambda: host.traced("child"), "the start of the child")
        assert run_of(child_id).parent == run_of(result.id)

    def test_publisher_rolls_back(self, host: HostHarness) -> None:
        """Huey runs the task all the same, as it did before: the run is made at its start."""
        host.online()
        with transaction.atomic():
            result = host.tasks["add"](1)
            transaction.set_rollback(True)
        assert result_of(result) == 3
        wait_until(lambda: has_status(result.id, "completed"), "its run")

    def test_consumer_faster_than_the_commit(self, host: HostHarness) -> None:
        host.online()
        with transaction.atomic():
            make_run()
            result = host.tasks["add"](1)
            if not IS_SQLITE:  # which has one writer at a time
                assert result_of(result) == 3
        wait_until(lambda: has_status(result.id, "completed"), "its run")

    def test_dropped_by_the_backend(self, host: HostHarness, settings: Any) -> None:
        """The handle raises as it does without the backend, instead of waiting for ever."""
        name = f"{huey_host.__name__}.{host.name}"
        setattr(huey_host, host.name, host.huey)
        settings.RUN_CANCEL_BACKENDS = {"huey": {"BACKEND": PATH, "OPTIONS": {"HUEY": name}}}
        works, add = host.tasks["works"], host.tasks["add"]
        first, second = host.huey.enqueue(works.s("drop").then(add, 1))._results
        run = run_of(first.id)
        assert (run.backend, run.external_id) == ("huey", first.id)
        cancel(first.id)
        deliver_due()
        assert host.huey.is_revoked(first.id)
        host.online()
        for result in (first, second):
            with pytest.raises(TaskException, match="has been cancelled"):
                result_of(result)
        assert host.traced("drop") == []
        wait_until(lambda: host.traced("signals") == ["works revoked"], "the signal")
        delattr(huey_host, host.name)

    def test_revoked_by_the_host(self, host: HostHarness) -> None:
        """Its run and the runs of its pipeline do not stay queued."""
        add = host.tasks["add"]
        first, second = host.huey.enqueue(add.s(1).then(add, 1))._results
        first.revoke()
        host.online()
        wait_until(lambda: has_status(first.id, "cancelled"), "the end of its run")
        assert run_of(second.id).status == "cancelled"
        record = run_of(first.id).cancellation
        assert (record.requested_by, record.reason) == ("huey", "Huey dropped the task: revoked.")
