"""Three hosts: one that sets nothing, one that names the default model, one that swaps it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LIFE_OF_A_HOST = """
import django
django.setup()
from django.core.management import call_command
from django.db import connection
call_command("makemigrations", check_changes=True, dry_run=True, verbosity=0)
call_command("check", fail_level="WARNING", databases=["default"])
call_command("migrate", verbosity=0)
from django_run_cancel.models import get_run_model
from django_run_cancel.cancellation import cancel_runs
run = get_run_model()._default_manager.create(status="running")
child = run.create_child(title="child")
assert cancel_runs([run.run_id], requested_by="host").cancelled == [run.run_id]
run.refresh_from_db()
print(run._meta.label, run.status, child.run_id[:4])
print(sorted(t for t in connection.introspection.table_names() if t.endswith(("_run", "_job"))))
call_command("migrate", "django_run_cancel", "zero", verbosity=0)
print([t for t in connection.introspection.table_names() if "run_cancel" in t])
"""

START_OF_A_WORKER = """
import sys
import django
django.setup()
parts = ["rest_framework.views", "drf_spectacular.generators", "django_run_cancel.execution"]
print([name for name in [*parts, "celery", "rq", "huey"] if name in sys.modules])
"""


def run(program: str, host: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own: much is decided when Django starts."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": host, "DATABASE_URL": "sqlite://:memory:"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_start__imports_no_part_that_the_process_may_not_use() -> None:
    done = run(START_OF_A_WORKER, "tests.settings")
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("host", "label", "table"),
    [
        ("tests.settings", "django_run_cancel.Run", "django_run_cancel_run"),
        ("tests.settings_declared", "django_run_cancel.Run", "django_run_cancel_run"),
        ("tests.settings_swapped", "hostapp.Job", "hostapp_job"),
    ],
)
def test_host__lacks_no_migration_and_cancels_and_leaves(host: str, label: str, table: str) -> None:
    done = run(LIFE_OF_A_HOST, host)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-3:] == [f"{label} cancelled tsk_", f"['{table}']", "[]"]
