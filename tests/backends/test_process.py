"""The backend for processes: the conformance suite, crashes in its middle, and its options."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from django_run_cancel.backends import StopOutcome
from django_run_cancel.backends.process import MARKER, ProcessBackend
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due, dispatch
from django_run_cancel.integrations.process import exit_on_sigterm
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import wait_until
from django_run_cancel.testing.conformance import ALIAS, BackendConformance, Harness
from django_run_cancel.testing.jobs import TRACE_FOLDER
from tests.backends.processes import pids_of, shell
from tests.delivery.helpers import pass_time
from tests.helpers import make_run, statuses

if not hasattr(os, "pidfd_open"):
    pytest.skip("The process backend needs Linux", allow_module_level=True)


class ProcessHarness(Harness):
    """There is no worker: offline, the processes wait; killed, all of them are."""

    backend = "django_run_cancel.backends.process.ProcessBackend"

    def options(self) -> dict[str, Any]:
        return {
            "COMMAND": [sys.executable, "-m", "tests.backends.process_jobs", "{run_id}"],
            "ENV": self.worker_environment(),
        }

    def online(self) -> None:
        (self.folder / "online").touch()

    def kill(self) -> None:
        (self.folder / "online").unlink(missing_ok=True)
        for pid in pids_of(TRACE_FOLDER, str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not pids_of(TRACE_FOLDER, str(self.folder)), "the end of the processes")


class TestProcess(BackendConformance):
    harness_class = ProcessHarness

    def test_job_that_waits_although_its_run_was_running(self, harness: Harness) -> None:
        """There is none: the process starts at once, and is all there is."""
        (run,) = self.send("returns")
        assert self.told(run, running=True) == [StopOutcome.STOPPED]

    def kill_midway(self, *arguments: str) -> None:
        """Let another process of ours do something, and die in the middle of it."""
        killed = subprocess.run(
            [sys.executable, "-m", "tests.backends.kill_midway", *arguments],
            env={
                **self.executor.worker_environment(),
                "BACKENDS": json.dumps(settings.RUN_CANCEL_BACKENDS),
            },
            timeout=120,
        )
        assert killed.returncode == -signal.SIGKILL

    @pytest.mark.parametrize(
        ("when", "step"),
        [
            ("before", "backends.process.ProcessBackend.dispatch"),
            ("after", "backends.process.ProcessBackend.dispatch"),
        ],
    )
    def test_who_dispatches_is_killed(self, harness: Harness, when: str, step: str) -> None:
        """The run is started all the same, and only once."""
        harness.kill()
        run = make_run("created", backend="", external_id="", title="returns")
        self.kill_midway("dispatch", when, step, run.run_id)
        run.refresh_from_db()
        before = pids_of(MARKER, run.external_id)
        assert (run.status, len(before)) == (RunStatus.QUEUED, int(when == "after"))
        assert not deliver_due()
        get_run_model()._default_manager.update(dispatch_due_at=run.created_at)
        assert deliver_due().dispatched == 1
        (started,) = pids_of(MARKER, run.external_id)
        assert before in ([], [started])
        harness.online()
        self.wait_for(RunStatus.COMPLETED, run)
        assert self.trace(run) == ["started", "left"]

    @pytest.mark.parametrize(
        ("when", "step"),
        [
            ("after", "delivery.outbox.claim_due"),
            ("after", "backends.process.ProcessBackend.stop"),
            ("before", "delivery.outbox.record"),
        ],
    )
    def test_who_delivers_is_killed(self, harness: Harness, when: str, step: str) -> None:
        """The run is stopped all the same, and how is known."""
        harness.online()
        run = self.started("never_checks")
        self.cancel(run)
        self.kill_midway("deliver_due", when, step)
        pass_time(61)  # the claim of who has died is void
        deliver_due()
        wait_until(lambda: not pids_of(MARKER, run.external_id), "the end of the process")
        # Its code has been interrupted, which it says, unless SIGKILL was quicker.
        assert self.stop_state(run) in {"acknowledged", "killed"}
        assert CancellationItem.objects.get().delivery == "delivered"
        assert self.trace(run).count("started") == 1

    def test_from_dispatch_to_evidence(self, harness: Harness) -> None:
        harness.online()
        polite, stubborn = (
            make_run("created", title="checks"),
            make_run("created", title="swallows_exceptions"),
        )
        for run in (polite, stubborn):
            dispatch(run, ALIAS)
            wait_until(lambda: "started" in self.trace(run), "the body")  # noqa: B023
            cancel_runs([run.run_id], requested_by="tests")
            assert deliver_due().delivered == 1
        self.wait_for_stop_state("acknowledged", polite)
        assert self.stop_state(stubborn) == "stopping"
        pass_time(31)
        assert deliver_due().escalated == 1
        assert self.stop_state(stubborn) == "killed"
        assert "left" not in self.trace(stubborn)

    def test_force_after_a_polite_cancellation(self, harness: Harness) -> None:
        harness.online()
        run = make_run("created", title="swallows_exceptions")
        dispatch(run, ALIAS)
        wait_until(lambda: "started" in self.trace(run), "the body")
        run.cancel(requested_by="tests")
        assert deliver_due().delivered == 1
        assert (self.stop_state(run), bool(pids_of(MARKER, run.external_id))) == ("stopping", True)
        assert run.cancel(requested_by="chief", force=True).cancelled == [run.run_id]
        assert deliver_due().delivered == 1
        assert self.stop_state(run) == "killed"
        assert pids_of(MARKER, run.external_id) == []
        assert "left" not in self.trace(run)
        assert not deliver_due()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 3", "failed"), ("setsid sleep 0.3 & exit 0", "queued"), ("kill -9 $$", "failed")],
)
def test_process_that_ends_before_it_starts_its_run(script: str, status: str) -> None:
    """Nobody else would ever say so. But it may have left the work to others."""
    executor = shell(script)
    run = make_run()
    run.external_id = executor.new_external_id(run)
    run.save()
    executor.dispatch(run)
    if status == "queued":
        time.sleep(0.25)
    else:
        wait_until(lambda: statuses(run) != ["queued"], "the end")
    run.refresh_from_db()
    assert run.status == status
    if status == "failed":
        assert "has not started it" in run.failure_reason
    wait_until(lambda: not waiting_threads(), "the threads to end")


def waiting_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("wait for ")]


def test_system_that_cannot(monkeypatch: Any) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    (message,) = shell("true").check()
    assert message.id == "django_run_cancel.E013"


@pytest.mark.parametrize("command", [None, "crawl {run_id}", [], ["crawl"], ["{run_id}", 1]])
def test_command_that_is_none(command: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="list of strings"):
        ProcessBackend("process", {"COMMAND": command})


def test_exit_on_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        exit_on_sigterm()
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143
        os.kill(os.getpid(), signal.SIGTERM)  # cleaning up is not interrupted
    finally:
        signal.signal(signal.SIGTERM, before)
