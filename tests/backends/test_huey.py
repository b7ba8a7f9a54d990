from __future__ import annotations

from typing import Any

import pytest

from django_run_cancel import services
from django_run_cancel.backends.base import StopOutcome, StopRequest
from django_run_cancel.models import get_run_model
from tests.backends.contract import BrokerContract, Harness
from tests.backends.services import URLS, require_package
from tests.helpers import make_run

require_package("huey")

from huey import MemoryHuey
from huey.exceptions import CancelExecution

from django_run_cancel.backends.huey import HueyBackend
from tests.backends import huey_jobs


class HueyHarness(Harness):
    backend = "django_run_cancel.backends.huey.HueyBackend"
    service = "Redis"
    ready = "Huey consumer started"

    def set_up(self) -> None:
        self.task = huey_jobs.make_task(self.name, self.proxy.url)
        setattr(huey_jobs, self.name, self.task)

    def options(self) -> dict[str, Any]:
        return {"TASK": f"tests.backends.huey_jobs.{self.name}"}

    def environment(self) -> dict[str, str]:
        return {"HUEY_NAME": self.name, "HUEY_URL": URLS["Redis"]}

    def command(self) -> list[str]:
        return ["-m", "huey.bin.huey_consumer", "tests.backends.huey_jobs.huey", "-k", "thread"]

    def tear_down(self) -> None:
        storage = self.task.huey.storage
        storage.flush_all()
        storage.pool.disconnect()


class TestHuey(BrokerContract):
    harness_class = HueyHarness


def test_storage_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any storage of Huey's will do; it is used as it is."""
    task: Any = MemoryHuey().task()(print)
    monkeypatch.setattr(huey_jobs, "in_memory", task, raising=False)
    backend = HueyBackend("huey", {"TASK": "tests.backends.huey_jobs.in_memory"})
    run = get_run_model()(run_id="tsk_1", external_id="job")
    backend.dispatch(run)
    outcomes = backend.stop([StopRequest("tsk_1", "job", False)], force=True)
    assert outcomes == {"job": StopOutcome.TOLD}
    (waiting,) = task.huey.pending()
    assert (waiting.id, waiting.args) == ("job", ("tsk_1",))
    assert task.huey.is_revoked(waiting)
    assert backend.check(deploy=True) == []


@pytest.mark.django_db(transaction=True)
def test_refused__no_retry() -> None:
    run = make_run()
    services.cancel_runs([run.run_id], requested_by="tests")
    task = huey_jobs.make_task("local", "redis://127.0.0.1")
    with pytest.raises(CancelExecution) as refused:
        task.call_local(run.run_id)
    assert refused.value.retry is False
