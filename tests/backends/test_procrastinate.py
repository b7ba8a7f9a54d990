from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

from tests.backends.contract import BackendContract, Harness
from tests.backends.services import require_package
from tests.helpers import IS_POSTGRESQL

require_package("procrastinate")
if not IS_POSTGRESQL:
    pytest.skip("Procrastinate needs PostgreSQL", allow_module_level=True)


class Procrastinate(Harness):
    backend = "django_run_cancel.backends.procrastinate.ProcrastinateBackend"
    ready = "Launching a worker"

    def options(self) -> dict[str, Any]:
        return {"TASK": "tests.backends.procrastinate_jobs.crawl"}

    def command(self) -> list[str]:
        intervals = ["--fetch-job-polling-interval=0.2", "--abort-job-polling-interval=0.2"]
        return ["-m", "django", "procrastinate", "worker", "--concurrency=1", *intervals]


def job_status(run: Any) -> list[tuple[str, bool]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT status::text, abort_requested FROM procrastinate_jobs WHERE queueing_lock = %s",
            [run.external_id],
        )
        return list(cursor.fetchall())


class TestProcrastinate(BackendContract):
    harness_class = Procrastinate
