from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_run_cancel.backends import StopOutcome, StopRequest, TaskCall
from django_run_cancel.cancellation import service
from django_run_cancel.exceptions import UnknownTask
from django_run_cancel.models import get_run_model
from django_run_cancel.testing.conformance import BrokerConformance, TrackedConformance
from tests.backends.helpers import RedisHarness
from tests.helpers import make_run
from tests.services import URLS, require_package

require_package("huey")

from huey import MemoryHuey
from huey.exceptions import CancelExecution

from django_run_cancel.backends.huey import HueyBackend
from tests.backends.brokers import huey_jobs


class HueyHarness(RedisHarness):
    backend = "django_run_cancel.backends.huey.HueyBackend"
    ready = "Huey consumer started"

    def set_up(self) -> None:
        self.task = huey_jobs.make_task(self.name, self.proxy.url)
        self.tracked = huey_jobs.make_tracked_task(self.task.huey)
        setattr(huey_jobs, self.name, self.task)

    def options(self) -> dict[str, Any]:
        return {"TASK": f"tests.backends.brokers.huey_jobs.{self.name}"}

    def publish(self, title: str) -> str:
        task_id: str = self.tracked(title).id
        return task_id

    def environment(self) -> dict[str, str]:
        return {"HUEY_NAME": self.name, "HUEY_URL": URLS["Redis"]}

    def command(self) -> list[str]:
        return [
            "-m",
            "huey.bin.huey_consumer",
            "tests.backends.brokers.huey_jobs.huey",
            "-k",
            "thread",
        ]

    def tear_down(self) -> None:
        storage = self.task.huey.storage
        storage.flush_all()
        storage.pool.disconnect()
        super().tear_down()


class TestHuey(BrokerConformance):
    harness_class = HueyHarness


class TestTracked(TrackedConformance):
    harness_class = HueyHarness


def test_storage_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any storage of Huey's will do; it is used as it is."""
    task: Any = MemoryHuey().task()(print)
    monkeypatch.setattr(huey_jobs, "in_memory", task, raising=False)
    backend = HueyBackend("huey", {"TASK": "tests.backends.brokers.huey_jobs.in_memory"})
    run = get_run_model()(run_id="tsk_1", external_id="job")
    backend.dispatch(run)
    outcomes = backend.stop([StopRequest("tsk_1", "job", False)], force=True)
    assert outcomes == {"job": StopOutcome.TOLD}
    (waiting,) = task.huey.pending()
    assert (waiting.id, waiting.args) == ("job", ("tsk_1",))
    assert task.huey.is_revoked(waiting)
    assert backend.check(deploy=True) == []


def test_one_alias_for_many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    huey = MemoryHuey()
    monkeypatch.setattr(huey_jobs, "a_huey", huey, raising=False)
    monkeypatch.setattr(huey_jobs, "page", huey.task()(print), raising=False)
    module = huey_jobs.__name__
    backend = HueyBackend("many", {"HUEY": f"{module}.a_huey"})
    call = TaskCall(f"{module}.page", ["/a"], {"depth": 2}, {"priority": 3})
    backend.check_call(call)
    backend.dispatch(get_run_model()(run_id="tsk_1", external_id="job"), call)
    (waiting,) = huey.pending()
    assert (waiting.id, waiting.args, waiting.kwargs) == ("job", ("tsk_1", "/a"), {"depth": 2})
    assert waiting.priority == 3
    for refused, error in (
        (TaskCall(), TypeError),
        (call._replace(options={"queue": "a"}), TypeError),
        (call._replace(kwargs={"delay": 1}), TypeError),
        (call._replace(task=f"{module}.jobs"), UnknownTask),
    ):
        with pytest.raises(error):
            backend.check_call(refused)
    with pytest.raises(ImproperlyConfigured, match="TASK or HUEY"):
        HueyBackend("none", {})
    wrong = HueyBackend("wrong", {"TASK": f"{module}.gone"})
    assert [found.id for found in wrong.check()] == ["django_run_cancel.E015"]


@pytest.mark.django_db(transaction=True)
def test_refused__no_retry() -> None:
    run = make_run()
    service.cancel_runs([run.run_id], requested_by="tests")
    task = huey_jobs.make_task("local", "redis://127.0.0.1")
    with pytest.raises(CancelExecution) as refused:
        task.call_local(run.run_id)
    assert refused.value.retry is False
