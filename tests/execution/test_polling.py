"""The thread that looks for cancellations: when it begins, how often it looks, and when it ends."""

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

from django_run_cancel.execution import block, execution, watcher
from django_run_cancel.execution.watcher import Watcher
from django_run_cancel.states import RunStatus
from tests.execution.helpers import PATIENCE, fresh, wait_until
from tests.helpers import make_run

ENDS_WITHIN_A_BLOCK = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django_run_cancel.execution import execution
from django_run_cancel.models import get_run_model

run = get_run_model().objects.create(status="queued")
execution(run.run_id).__enter__()
print("entered")
"""


def test_keeps_no_process_from_ending(tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path / 'ends.sqlite3'}"
    ran = subprocess.run(
        [sys.executable, "-c", ENDS_WITHIN_A_BLOCK],
        env={**os.environ, "DATABASE_URL": database_url, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * PATIENCE,
    )
    assert ran.stdout.strip() == "entered", ran.stderr


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("watched")
class TestPolls:
    @pytest.fixture
    def polls(self, monkeypatch: Any) -> list[int]:
        """The numbers of executions that were looked for, poll by poll."""
        seen: list[int] = []
        real = watcher.poll_runs

        def poll_runs(watches: Any) -> None:
            seen.append(len(watches))
            real(watches)

        monkeypatch.setattr(watcher, "poll_runs", poll_runs)
        return seen

    @pytest.mark.parametrize("setting", ["POLL", "HEARTBEAT"])
    def test_no_more_often_than_the_settings_say(
        self, setting: str, polls: list[int], settings: Any
    ) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = PATIENCE
        setattr(settings, f"RUN_CANCEL_{setting}_SECONDS", 0.1)
        began = time.monotonic()
        with execution(make_run().run_id):
            wait_until(lambda: len(polls) >= 5)
            number, seconds = len(polls), time.monotonic() - began
        assert number <= seconds / 0.1

    def test_ends_with_the_last_execution(self, polls: list[int], settings: Any) -> None:
        """It is woken, however long it would have waited for the next poll."""
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 3600
        with execution(make_run().run_id):
            thread = watcher.current._thread
            assert thread is not None
            with execution(make_run().run_id):
                assert watcher.current._thread is thread
            thread.join(0.1)
            assert thread.is_alive()
            assert polls == []  # nothing has woken it before
        thread.join(PATIENCE)
        assert not thread.is_alive()

    def test_none_before_the_block(self) -> None:
        executed = execution(make_run().run_id)
        watcher.current.overdue_at = 0.0
        executed.checkpoint()
        was_added = bool(watcher.current.watches)
        watcher.current.remove(executed._watch)
        assert not was_added

    def test_first_execution_of_a_process__interrupted_before_its_start(
        self, monkeypatch: Any
    ) -> None:
        def capture_thread_context() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(watcher, "current", Watcher())
        monkeypatch.setattr(block, "capture_thread_context", capture_thread_context)
        run = make_run()
        with pytest.raises(KeyboardInterrupt), execution(run.run_id):
            pytest.fail("It was entered.")
        assert fresh(run).status == RunStatus.QUEUED

    @pytest.mark.parametrize("vendor", ["mysql", "oracle", "sqlite"])
    def test_other_databases_are_not_listened_to(self, vendor: str, settings: Any) -> None:
        settings.RUN_CANCEL_LISTEN = True
        looks = Watcher()
        looks._listen(SimpleNamespace(vendor=vendor))  # which can do nothing else
        assert looks._listening_connection is None

    def test_as_late_as_two_polls(self, settings: Any, monkeypatch: Any) -> None:
        """Then checkpoints let it run, if it is a greenlet in their thread, and not before."""
        settings.RUN_CANCEL_POLL_SECONDS = settings.RUN_CANCEL_HEARTBEAT_SECONDS = 100
        with execution(make_run().run_id) as executed:
            monkeypatch.setattr(watcher.current, "_native_id", threading.get_native_id())
            for is_late in (False, True):
                if is_late:
                    watcher.current.overdue_at = 0.0
                    executed.checkpoint()
                assert 150 < watcher.current.overdue_at - time.monotonic() <= 200
            due = watcher.current.overdue_at = time.monotonic() + PATIENCE
            executed.checkpoint()
            assert not executed.cancel_requested
            assert watcher.current.overdue_at == due
