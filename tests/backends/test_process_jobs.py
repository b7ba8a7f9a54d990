"""Processes that are started and stopped: groups, orphans, refusals, and processes of others."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from django_run_cancel.backends import StopOutcome, StopRequest, TaskCall, process
from django_run_cancel.backends.base import BackendError
from django_run_cancel.backends.process import MARKER, ProcessBackend
from django_run_cancel.testing import wait_until
from tests.backends.processes import backend, pids_of, shell

if not hasattr(os, "pidfd_open"):
    pytest.skip("The process backend needs Linux", allow_module_level=True)


class Job:
    """A run of no database, with an id of its own."""

    run_id = "tsk_x"
    made: ClassVar[list[Job]] = []

    def __init__(self, executor: ProcessBackend) -> None:
        self.external_id = executor.new_external_id(self)  # type: ignore[arg-type]
        self.made.append(self)

    @property
    def pids(self) -> list[int]:
        return pids_of(MARKER, self.external_id)

    def start(self, executor: ProcessBackend, count: int = 1) -> None:
        executor.dispatch(self)  # type: ignore[arg-type]
        wait_until(lambda: len(self.pids) == count, "the processes")

    def stop(self, executor: ProcessBackend, force: bool = False) -> Any:
        request = StopRequest(self.run_id, self.external_id, True)
        return executor.stop([request], force=force)[self.external_id]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    while Job.made:
        for pid in Job.made.pop().pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_dispatched_twice__started_once() -> None:
    executor = shell("exec sleep 60")
    job = Job(executor)
    job.start(executor)
    (before,) = job.pids
    job.start(executor)
    assert job.pids == [before]


def test_whole_group_is_stopped() -> None:
    executor = shell("sleep 60 & sleep 60 & wait")
    job = Job(executor)
    job.start(executor, 3)
    assert job.stop(executor) is StopOutcome.STOPPED
    assert job.pids == []


def test_orphans_are_found_when_the_first_process_has_died(tmp_path: Path) -> None:
    leave = tmp_path / "leave"
    os.mkfifo(leave)
    executor = shell(f"setsid sleep 600 & sleep 600 & read line < {leave}")
    job = Job(executor)
    job.start(executor, 2 + 1)
    leave.write_text("now\n")
    wait_until(lambda: len(job.pids) == 2, "the end of the shell")
    assert job.stop(executor) is StopOutcome.STOPPED
    assert job.pids == []


def test_main_thread_has_ended_before_others(tmp_path: Path) -> None:
    """As after pthread_exit() in main(); the process itself shows no environment any more."""
    leave = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    executor = backend(
        *(sys.executable, "-c"),
        "import ctypes, pathlib, threading, time\n"
        "threading.Thread(target=time.sleep, args=[60]).start()\n"
        f"while not pathlib.Path('{tmp_path}/leave').exists(): time.sleep(0.01)\n"
        f"ctypes.CDLL(None).syscall({leave}, 0)  # {{run_id}}",
    )
    job = Job(executor)
    job.start(executor)
    (pid,) = job.pids
    (tmp_path / "leave").touch()
    wait_until(lambda: job.pids == [], "the end of the main thread")
    assert os.path.exists(f"/proc/{pid}")
    assert job.stop(executor, force=True) is StopOutcome.STOPPED
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "its end")


def test_sigterm_is_ignored__told_and_then_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    executor = shell(f"trap '' TERM; touch {ready}; while true; do sleep 0.1; done", TIMEOUT=0.5)
    job = Job(executor)
    job.start(executor)
    wait_until(ready.exists, "the trap")
    began = time.monotonic()
    assert job.stop(executor) is StopOutcome.TOLD
    assert time.monotonic() - began >= 0.5
    assert job.stop(executor, force=True) is StopOutcome.STOPPED
    assert job.pids == []


def test_what_starts_while_it_is_killed__is_killed_too(monkeypatch: Any) -> None:
    executor = shell("exec sleep 60")
    job = Job(executor)
    job.start(executor)
    real = process._Processes.wait
    started = []

    def wait(self: Any, deadline: float) -> None:
        real(self, deadline)
        if not started:
            environment = {MARKER: job.external_id}
            started.append(subprocess.Popen(["/bin/sleep", "60"], env=environment))

    monkeypatch.setattr(process._Processes, "wait", wait)
    assert job.stop(executor, force=True) is StopOutcome.STOPPED
    assert started[0].wait(5) == -signal.SIGKILL


def test_others_are_left_alone() -> None:
    executor = shell("exec sleep 60")
    mine, other = Job(executor), Job(executor)
    mine.start(executor)
    other.start(executor)
    assert mine.stop(executor, force=True) is StopOutcome.STOPPED
    assert len(other.pids) == 1


def test_pid_used_again__is_not_signalled(monkeypatch: Any) -> None:
    """Between the look and the grip, the pid has become another's: it is asked again."""
    executor = shell("exec sleep 60")
    job = Job(executor)
    stranger = subprocess.Popen(["/bin/sleep", "60"], env={})
    real, asked = process._external_id, []

    def external_id(pid: int) -> str:
        if pid == stranger.pid:
            asked.append(pid)
            return job.external_id if len(asked) == 1 else ""
        return real(pid)

    monkeypatch.setattr(process, "_external_id", external_id)
    assert job.stop(executor, force=True) is StopOutcome.STOPPED
    assert len(asked) > 1
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_ended_between_the_look_and_the_grip(monkeypatch: Any) -> None:
    executor = shell("exec sleep 60")
    job = Job(executor)
    job.start(executor)

    def gone(pid: int) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", gone)
    assert job.stop(executor) is StopOutcome.STOPPED


def test_what_cannot_be_looked_at__is_not_said_to_have_ended(monkeypatch: Any) -> None:
    """Such as when there are no file descriptors left, at whichever look."""
    executor = shell("exec sleep 60")
    job = Job(executor)
    job.start(executor)
    (pid,) = job.pids
    for name in ("open", "pidfd_open"):
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            if name == "open":
                patch.setattr(process, "open", none_left, raising=False)
            else:
                patch.setattr(os, "pidfd_open", none_left)
            for force in (False, True):
                assert "Too many open files" in str(job.stop(executor, force))
            with pytest.raises(BackendError, match="Too many open files"):
                executor.dispatch(job)  # type: ignore[arg-type]
        assert len(os.listdir("/proc/self/fd")) <= before
        assert job.pids == [pid]
    assert job.stop(executor) is StopOutcome.STOPPED


def none_left(*args: Any) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


def test_in_the_middle_of_executing_a_program__is_not_said_to_have_ended(
    monkeypatch: Any,
) -> None:
    """For a moment the process shows no environment."""
    executor = shell("trap '' TERM; while true; do sleep 0.05; done", TIMEOUT=0.1)
    job = Job(executor)
    job.start(executor)
    time.sleep(0.2)
    real, looks = process._Processes, []

    class Blinking(process._Processes):
        def __init__(self, external_ids: Any) -> None:
            super().__init__(external_ids)
            looks.append(1)
            if len(looks) == 2:  # the first after the signal
                self.found.clear()

    monkeypatch.setattr(process, "_Processes", Blinking)
    assert job.stop(executor) is StopOutcome.TOLD
    assert len(looks) == 3
    monkeypatch.setattr(process, "_Processes", real)


def test_another_host_of_the_same_name__is_said(monkeypatch: Any, tmp_path: Path) -> None:
    """As where all containers are called alike, or hosts are cloned."""
    machine = tmp_path / "machine-id"
    monkeypatch.setattr(process, "MACHINE_ID", str(machine))
    executor = shell("exec sleep 60")
    job, other = Job(executor), None
    job.start(executor)
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    assert "another host" in str(job.stop(executor))
    other = Job(executor)
    assert "/0123456789abcdef0123456789abcdef/" in other.external_id
    other.start(executor)
    assert other.stop(executor) is StopOutcome.STOPPED
    machine.unlink()
    assert job.stop(executor) is StopOutcome.STOPPED


def test_another_host_or_user__is_said(monkeypatch: Any) -> None:
    executor = shell("exec sleep 60")
    job = Job(executor)
    job.start(executor)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert "another host" in str(job.stop(executor))
    with pytest.raises(BackendError, match="another host"):
        job.start(executor)
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "another user" in str(job.stop(executor))
    monkeypatch.undo()
    assert len(job.pids) == 1


def test_child_is_no_zombie() -> None:
    executor = shell("exit 0")
    before = {path.name for path in Path("/proc").glob("[0-9]*")}
    executor.dispatch(Job(executor))  # type: ignore[arg-type]

    def children() -> list[str]:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return [pid for pid in listed if pid not in before]

    wait_until(lambda: not children(), "the child to be waited for")


def test_process_that_ends_while_the_database_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """Here: that may not be used in this test."""
    executor = shell("exit 3")
    executor.dispatch(Job(executor))  # type: ignore[arg-type]
    wait_until(lambda: "Cannot record the end of run tsk_x" in caplog.text, "the log")


def test_command_that_cannot_be_started() -> None:
    executor = backend("/nonexistent", "{run_id}")
    with pytest.raises(BackendError, match="nonexistent"):
        executor.dispatch(Job(executor))  # type: ignore[arg-type]
    (message,) = executor.check()
    assert message.id == "django_run_cancel.E014"
    assert backend("sh", "{run_id}").check() == []
    (message,) = backend("sh", "{run_id}", ENV={"PATH": "/nonexistent"}).check()
    assert message.id == "django_run_cancel.E014"


def test_where_and_how_it_runs(tmp_path: Path) -> None:
    executor = shell('echo "$0 $WORD" > out', CWD=str(tmp_path), ENV={"WORD": "hello"})
    executor.dispatch(Job(executor))  # type: ignore[arg-type]
    out = tmp_path / "out"
    wait_until(lambda: out.exists() and out.read_text(), "the output")
    assert out.read_text() == "tsk_x hello\n"


def test_calls(tmp_path: Path) -> None:
    path = tmp_path / "out"
    code = "import os, sys; print(*sys.argv[1:], os.environ['DEPTH'], file=open('out', 'w'))"
    executor = ProcessBackend(
        "process", {"COMMAND": [sys.executable, "-c", code, "{task}", "{run_id}"]}
    )
    options = {"cwd": str(tmp_path), "env": {"DEPTH": "2"}}
    call = TaskCall("crawl", ["/a"], {}, options)
    executor.check_call(call)
    executor.dispatch(Job(executor), call)  # type: ignore[arg-type]
    wait_until(lambda: path.exists() and path.read_text(), "the process")
    assert path.read_text() == "crawl tsk_x /a 2\n"
    for refused, problem in (
        (call._replace(task=None), "has a {task}"),
        (call._replace(args=[1]), "must be texts"),
        (call._replace(kwargs={"depth": 2}), "positional arguments only"),
        (call._replace(options={"nice": 1}), "takes no nice"),
    ):
        with pytest.raises(TypeError, match=problem):
            executor.check_call(refused)
