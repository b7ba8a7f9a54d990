from __future__ import annotations

import json
import runpy
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution
from django_run_cancel.testing import jobs
from django_run_cancel.testing.conformance import Harness, Proxy
from django_run_cancel.testing.conformance.proxy import host_and_port
from tests.helpers import make_run


class EndsAtOnce(Harness):
    ready = "never printed"

    def command(self) -> list[str]:
        return ["-c", "print('no such queue')"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(jobs.TRACE_FOLDER, str(tmp_path))
    monkeypatch.setattr(jobs, "LONG", 2)
    monkeypatch.setattr(jobs, "PAUSE_SECONDS", 0)
    return tmp_path


class Execution:
    """Stands in for the execution of a run, which is cancelled at its second checkpoint."""

    def __init__(self, title: str) -> None:
        self.run = SimpleNamespace(run_id="tsk_1", title=title)
        self.checkpoints = 0

    def checkpoint(self) -> None:
        self.checkpoints += 1
        if self.checkpoints > 1:
            raise RunCancelled("tsk_1")


@pytest.mark.parametrize(
    ("title", "error", "events"),
    [
        ("returns", None, []),
        ("checks", RunCancelled, ["raised RunCancelled"]),
        ("never_checks", None, ["tick", "tick"]),
        ("swallows_exceptions", None, ["tick", "tick"]),
        ("fails_once", jobs.JobFailed, ["raised JobFailed"]),
        ("fails_always", jobs.JobFailed, ["raised JobFailed"]),
    ],
)
def test_jobs(folder: Path, title: str, error: Any, events: list[str]) -> None:
    execution: Any = Execution(title)
    if error is None:
        jobs.run_job(execution)
    else:
        with pytest.raises(error):
            jobs.run_job(execution)
    assert jobs.read_trace(folder, "tsk_1") == ["started", *events, "left"]


def test_jobs__checks_for_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LONG", 1)
    jobs.run_job(Execution("checks"))  # type: ignore[arg-type]
    assert jobs.read_trace(folder, "tsk_1") == ["started", "left"]


def test_jobs__fails_once(folder: Path) -> None:
    execution: Any = Execution("fails_once")
    with pytest.raises(jobs.JobFailed):
        jobs.run_job(execution)
    assert jobs.has_tries_left("tsk_1")
    jobs.run_job(execution)
    assert jobs.has_tries_left("tsk_1")
    jobs.run_job(execution)
    assert not jobs.has_tries_left("tsk_1")


def test_jobs__swallows_exceptions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise SystemExit

    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    jobs.run_job(Execution("swallows_exceptions"))  # type: ignore[arg-type]
    assert jobs.read_trace(folder, "tsk_1").count("swallowed SystemExit") == 2


def test_jobs__fails_when_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda _: (folder / "tsk_1.fail").touch())
    with pytest.raises(jobs.JobFailed):
        jobs.run_job(Execution("fails_when_told"))  # type: ignore[arg-type]


def test_worker_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_CANCEL_HOST_SETTINGS", "tests.settings")
    monkeypatch.setenv("RUN_CANCEL_TEST_DATABASES", json.dumps({"default": "another"}))
    settings = runpy.run_module("django_run_cancel.testing.worker_settings")
    assert settings["ROOT_URLCONF"] == "tests.urls"
    assert settings["DATABASES"]["default"]["NAME"] == "another"
    assert settings["DATABASES"]["default"]["ENGINE"].startswith("django.db.backends.")


def test_harness__worker_that_ends_at_once(tmp_path: Path) -> None:
    harness = EndsAtOnce(tmp_path, None, None)
    with pytest.raises(AssertionError, match="did not come up:\nno such queue"):
        harness.online()
    harness.kill()


def test_harness__what_authors_must_define(tmp_path: Path) -> None:
    harness = Harness(tmp_path, None, None)
    for method in (harness.options, harness.command, partial(harness.publish, "returns")):
        with pytest.raises(NotImplementedError):
            method()
    with pytest.raises(AssertionError, match="no broker"):
        _ = harness.proxy


def test_proxy__keeps_the_login() -> None:
    with Proxy("amqp://guest:secret@127.0.0.1:1/vhost") as proxy:
        login, _, rest = proxy.url.rpartition("@")
        assert login == "amqp://guest:secret"
        assert rest.endswith("/vhost")


def test_proxy__closed_while_it_is_down() -> None:
    with Proxy("redis://127.0.0.1:1/0") as proxy:
        proxy.down("refused")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(host_and_port(proxy.url))


def test_nothing_else_needs_pytest() -> None:
    """Hosts may use the helpers with another test runner, and workers have none."""
    code = "import sys; sys.modules['pytest'] = None; import django_run_cancel.testing"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.django_db(transaction=True)
def test_job_of_the_current_run(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="not tracked"):
        jobs.run_current_job()
    run = make_run("queued", **jobs.describe("host.task", ["returns"], {}))
    with execution(run.run_id):
        jobs.run_current_job()
    assert jobs.read_trace(folder, run.run_id) == ["started", "left"]
    assert jobs.describe("host.task", ["other"], {}) == {}
    assert jobs.describe("host.task", [{}], {}) == {}
