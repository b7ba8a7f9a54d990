from __future__ import annotations

from typing import Any

from tests.backends.contract import BrokerContract, Harness
from tests.backends.services import URLS, require_package

require_package("huey")

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
