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


@pytest.mark.parametrize(
    ("host", "label", "table"),
    [
        ("tests.settings", "django_run_cancel.Run", "django_run_cancel_run"),
        ("tests.settings_declared", "django_run_cancel.Run", "django_run_cancel_run"),
        ("tests.settings_swapped", "hostapp.Job", "hostapp_job"),
    ],
)
def test_host__lacks_no_migration_and_cancels_and_leaves(host: str, label: str, table: str) -> None:
    # In a process of its own: which model is the run model is settled when Django starts.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIFE_OF_A_HOST],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": host, "DATABASE_URL": "sqlite://:memory:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-3:] == [f"{label} cancelled tsk_", f"['{table}']", "[]"]
