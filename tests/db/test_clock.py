from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection, connections
from django.db.models.functions import Coalesce
from django.utils import timezone

from django_run_cancel.db.clock import DatabaseNow, database_now
from django_run_cancel.models import get_run_model
from django_run_cancel.states import RunStatus
from tests.helpers import IS_SQLITE, make_run

ROOT = Path(__file__).parents[2]


@pytest.mark.django_db
def test_database_now__is_that_of_this_host_in_utc() -> None:
    """Within a minute: the tests and their database are on one host."""
    now = database_now("default")
    assert now.utcoffset() == timedelta()
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let columns be in another time zone, where the database has none itself."""

    def forget() -> None:
        for name in ("timezone", "timezone_name"):
            vars(connections["default"]).pop(name, None)
        connection.ensure_timezone()

    with monkeypatch.context() as patched:
        patched.setitem(connection.settings_dict, "TIME_ZONE", "Asia/Tokyo")
        forget()
        yield
    forget()


@pytest.mark.django_db
@pytest.mark.usefixtures("tokyo")
def test_database_now__with_columns_in_another_time_zone() -> None:
    test_database_now__is_that_of_this_host_in_utc()
    test_database_now__is_comparable_with_what_is_stored()


@pytest.mark.django_db
def test_database_now__is_comparable_with_what_is_stored() -> None:
    before, after = timezone.now() - timedelta(minutes=1), timezone.now() + timedelta(minutes=1)
    rows = get_run_model()._base_manager
    run = make_run(heartbeat_at=before)
    assert rows.filter(heartbeat_at__lt=DatabaseNow()).exists()
    assert not rows.filter(heartbeat_at__lt=DatabaseNow() - timedelta(minutes=2)).exists()
    rows.update(heartbeat_at=after)
    assert not rows.filter(heartbeat_at__lt=DatabaseNow()).exists()
    rows.update(heartbeat_at=DatabaseNow())
    run.refresh_from_db()
    assert before < run.heartbeat_at < after


@pytest.mark.django_db
def test_database_now__is_the_same_everywhere_in_a_statement() -> None:
    run = make_run()
    rows = get_run_model()._base_manager
    rows.update(heartbeat_at=DatabaseNow(), started_at=Coalesce("started_at", DatabaseNow()))
    run.refresh_from_db()
    assert run.heartbeat_at == run.started_at


@pytest.mark.skipif(IS_SQLITE, reason="SQLite's clock is that of its host")
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is missing")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("shift", ["+10m", "-10m"])
def test_worker_whose_clock_is_wrong(shift: str) -> None:
    """It times out no healthy run, presumes nothing early, and tells at once what is due."""
    from tests.api.servers import database_url
    from tests.delivery.helpers import cancelled, item_of

    if get_run_model()._meta.label != "django_run_cancel.Run":
        pytest.skip("The worker's settings are those of the usual run model.")

    healthy = make_run(RunStatus.RUNNING, heartbeat_at=timezone.now(), started_at=timezone.now())
    recent = cancelled()
    environment = {
        **os.environ,
        "DATABASE_URL": database_url(),
        "DJANGO_SETTINGS_MODULE": "tests.db.stalled_settings",
    }
    command = [sys.executable, "-m", "django", "deliver_cancellations", "--once"]
    subprocess.run(["faketime", "-f", shift, *command], check=True, cwd=ROOT, env=environment)
    healthy.refresh_from_db()
    recent.refresh_from_db()
    assert (healthy.status, recent.stop_state) == ("running", "stopping")
    assert item_of(recent).delivery == "delivered"
