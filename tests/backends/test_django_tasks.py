from __future__ import annotations

from typing import Any

from tests.backends.services import require_package

require_package("django_tasks_db")

from tests.backends.contract import BackendContract, Harness  # noqa: E402


class DjangoTasks(Harness):
    backend = "django_run_cancel.backends.django_tasks.DjangoTasksBackend"
    ready = "Starting worker"

    def options(self) -> dict[str, Any]:
        return {"TASK": "tests.backends.django_tasks_jobs.crawl"}

    def command(self) -> list[str]:
        return ["-m", "django", "db_worker", "--interval=0.1", "--no-startup-delay", "--no-reload"]


class TestDjangoTasks(BackendContract):
    harness_class = DjangoTasks
