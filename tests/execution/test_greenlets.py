"""gevent and eventlet: the watcher is a greenlet, which runs only while the code waits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from django_run_cancel.execution import execution, watcher
from tests.execution.helpers import PATIENCE, cancel, wait_until
from tests.helpers import make_run

COMPUTES_WITHOUT_WAITING = """
{patch}
import os, time
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django
from django.conf import settings
settings.RUN_CANCEL_POLL_SECONDS = 0.05
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution
from django_run_cancel.models import get_run_model

run = get_run_model().objects.create(status="queued")
try:
    with execution(run.run_id) as executed:
        cancel_runs([run.run_id], requested_by="tests")
        until = time.monotonic() + {patience}
        while time.monotonic() < until:
            sum(range(1000))
            executed.checkpoint()
except RunCancelled:
    print("told")
"""

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.parametrize("library", PATCHES)
def test_code_that_never_waits_is_told(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    script = COMPUTES_WITHOUT_WAITING.format(patch=PATCHES[library], patience=PATIENCE)
    database_url = f"sqlite:///{tmp_path / 'greenlets.sqlite3'}"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "DATABASE_URL": database_url, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * PATIENCE,
    )
    assert ran.stdout.strip() == "told", ran.stderr


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("watched")
class TestYielding:
    """The same in this process: the watcher pretends to share the thread of the code."""

    def test_waits_for_a_look(self, monkeypatch: Any) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            monkeypatch.setattr(watcher.current, "_native_id", threading.get_native_id())
            cancel(run)
            wait_until(lambda: self.is_told_when_overdue(executed))

    def is_told_when_overdue(self, executed: Any) -> bool:
        watcher.current.overdue_at = 0.0
        told: bool = executed.cancel_requested
        return told

    def test_asks_again_later_when_no_look_comes(self, settings: Any, monkeypatch: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = PATIENCE
        with execution(make_run().run_id) as executed:
            monkeypatch.setattr(watcher.current, "_native_id", threading.get_native_id())
            watcher.current.overdue_at = 0.0
            executed.checkpoint()
            assert watcher.current.overdue_at > time.monotonic()

    @pytest.mark.parametrize("comes", [True, False])
    def test_waits_until_a_look_comes__not_for_long(
        self, settings: Any, monkeypatch: Any, *, comes: bool
    ) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 3600
        clock, waits = SimpleNamespace(seconds=1000.0), []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            clock.seconds += seconds
            assert sum(waits) < 0.5
            if comes:
                watcher.current.overdue_at = clock.seconds + PATIENCE

        with execution(make_run().run_id) as executed:
            monkeypatch.setattr(watcher.current, "_native_id", threading.get_native_id())
            watcher.current.overdue_at = 0.0
            with monkeypatch.context() as patch:
                fake = SimpleNamespace(monotonic=lambda: clock.seconds, sleep=sleep)
                patch.setattr(watcher, "time", fake)
                executed.checkpoint()
        assert waits
        assert not comes or len(waits) == 1

    def test_not_after_the_block(self) -> None:
        with execution(make_run().run_id) as executed:
            pass
        watcher.current.overdue_at = 0.0
        executed.checkpoint()
        assert not watcher.current.watches

    def test_code_in_another_thread_does_not_wait(self, settings: Any, monkeypatch: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = PATIENCE

        def sleep(seconds: float) -> None:
            pytest.fail("It waited.")

        with execution(make_run().run_id) as executed:
            wait_until(lambda: watcher.current._native_id is not None)
            watcher.current.overdue_at = 0.0
            with monkeypatch.context() as patch:
                patch.setattr(watcher.time, "sleep", sleep)
                executed.checkpoint()
