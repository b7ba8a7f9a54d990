"""``manage.py cancel_runs``: called from Python, and as a process on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import getpass
import io
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper
from django.db import connection, transaction

from django_run_cancel.management.commands import cancel_runs as command
from django_run_cancel.models import Cancellation, get_run_model
from django_run_cancel.services import cancel_runs
from tests.api.servers import database_url
from tests.helpers import IS_SQLITE, ids, make_run, make_runs, statuses

ROOT = Path(__file__).resolve().parent.parent
ID = r"(tsk|run)_[0-9a-f]{32}"


def run(*args: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("cancel_runs", *args, stdout=out, **options)
    return out.getvalue()


def statuses_elsewhere(runs: list[Any]) -> int:
    """Return how many are cancelled, as another connection sees it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_count_cancelled, ids(runs)).result()


def _count_cancelled(run_ids: list[str]) -> int:
    try:
        runs = get_run_model()._default_manager.filter(run_id__in=run_ids, status="cancelled")
        return runs.count()
    finally:
        connection.close()


def failing(*args: str) -> tuple[int, str, str]:
    """Return the exit status, what was printed, and the message of a call that fails."""
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("cancel_runs", *args, stdout=out)
    return caught.value.returncode, out.getvalue(), str(caught.value)


@pytest.mark.django_db
class TestByIds:
    def test_any_number_in_chunks(self) -> None:
        runs = make_runs(250)
        assert run(*ids(runs), "--yes") == "250 runs are cancelled.\n"
        assert set(statuses(*runs)) == {"cancelled"}
        assert list(Cancellation.objects.order_by("pk").values_list("total_count", flat=True)) == [
            100,
            100,
            50,
        ]

    def test_record(self) -> None:
        job = make_run("running")
        job.create_child()
        assert run(job.run_id, "--yes", "--reason", "Disk full") == (
            "1 runs are cancelled, and 1 below them.\n"
        )
        record = Cancellation.objects.get()
        assert (record.source, record.reason) == ("command", "Disk full")
        assert record.requested_by == f"{getpass.getuser()}@{socket.gethostname()}"
        assert record.ip_address is None
        run(job.run_id, "--yes", "--requested-by", "night watch", "--force")
        again = Cancellation.objects.latest("pk")
        assert (again.requested_by, again.force, record.force) == ("night watch", True, False)

    def test_file_and_arguments_together_once_each(self, tmp_path: Path) -> None:
        a, b, c = runs = make_runs(3)
        file = tmp_path / "ids"
        file.write_bytes(f"\ufeff{a.run_id}\r\n {b.run_id}\t\n{a.run_id}\n\n".encode())
        run(c.run_id, c.run_id, "--file", str(file), "--yes")
        assert statuses(*runs) == ["cancelled"] * 3
        assert Cancellation.objects.get().total_count == 3

    def test_standard_input(self, monkeypatch: Any) -> None:
        runs = make_runs(2)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(ids(runs))))
        run("-", "--yes")
        assert statuses(*runs) == ["cancelled"] * 2
        monkeypatch.setattr("sys.stdin", None)  # closed
        assert run("-", "--yes") == "0 runs are cancelled.\n"
        assert failing("tsk_1")[0] == 2

    def test_some_failed(self) -> None:
        done, job = make_run("completed"), make_run()
        status, out, message = failing(done.run_id, job.run_id, "unknown", "--yes")
        assert status == 1
        assert message == "2 of 3 runs are not cancelled."
        assert out == (
            f"{done.run_id}: already_finished\nunknown: not_found\n1 runs are cancelled.\n"
        )
        assert statuses(job) == ["cancelled"]

    def test_filters_narrow_what_is_named(self) -> None:
        ours, theirs = make_run(tenant="ours"), make_run(tenant="theirs")
        status, out, _ = failing(ours.run_id, theirs.run_id, "--tenant", "ours", "--yes")
        assert (status, out.splitlines()[0]) == (1, f"{theirs.run_id}: not_found")
        assert statuses(ours, theirs) == ["cancelled", "queued"]

    def test_status_of_what_is_named(self) -> None:
        queued, running = make_run(), make_run("running")
        for _ in range(2):  # asking again is no failure
            status, out, _ = failing(queued.run_id, running.run_id, "--status", "queued", "--yes")
            assert (status, out.splitlines()[0]) == (1, f"{running.run_id}: not_found")
        assert run(queued.run_id, "--status", "queued", "--yes") == "1 runs are cancelled.\n"
        assert statuses(queued, running) == ["cancelled", "running"]

    def test_children_that_are_named_too_count_once(self) -> None:
        parent = make_run("running")
        children = [parent.create_child() for _ in range(150)]
        named = ids([parent, *children[:120]])
        expected = "121 runs {} cancelled, and 30 below them.\n"
        assert run(*named, "--dry-run") == expected.format("would be")
        assert run(*named, "--yes") == expected.format("are")

    def test_dry_run(self) -> None:
        job, done = make_run("running"), make_run("failed")
        job.create_child()
        assert run(job.run_id, "--dry-run") == "1 runs would be cancelled, and 1 below them.\n"
        assert failing(done.run_id, "--dry-run")[0] == 1
        assert statuses(job) == ["running"]
        assert not Cancellation.objects.exists()

    def test_json(self) -> None:
        job, done = make_run(), make_run("failed")
        _, out, _ = failing(job.run_id, done.run_id, "--json", "--yes")
        assert json.loads(out) == {
            "cancelled": [job.run_id],
            "failed": {done.run_id: "already_finished"},
            "below": 0,
            "cancellations": [Cancellation.objects.get().cancellation_id],
            "dry_run": False,
        }

    def test_again(self) -> None:
        job = make_run()
        cancel_runs([job.run_id], requested_by="x")
        assert run(job.run_id, "--yes") == "1 runs are cancelled.\n"


@pytest.mark.django_db
class TestByFilter:
    def test_only_what_is_active_and_fits(self) -> None:
        wanted = make_runs(230, "running", tenant="acme", run_type="crawl")
        others = [
            make_run("queued", tenant="acme", run_type="crawl"),
            make_run("running", tenant="acme"),
            make_run("running", tenant="globex", run_type="crawl"),
            make_run("completed", tenant="acme", run_type="crawl"),
        ]
        before = statuses(*others)
        args = ["--tenant", "acme", "--type", "crawl", "--status", "running", "--yes"]
        assert run(*args) == "230 runs are cancelled.\n"
        assert set(statuses(*wanted)) == {"cancelled"}
        assert statuses(*others) == before
        assert run(*args) == "0 runs are cancelled.\n"

    def test_statuses_add_up(self) -> None:
        runs = [make_run("queued"), make_run("paused"), make_run("running")]
        run("--status", "queued", "--status", "paused", "--yes")
        assert statuses(*runs) == ["cancelled", "cancelled", "running"]

    def test_dry_run_ends(self) -> None:
        make_runs(205)
        assert run("--status", "queued", "--dry-run") == "205 runs would be cancelled.\n"

    def test_what_comes_meanwhile_was_not_meant(self) -> None:
        early = make_runs(3)
        chunks = command.selected(command.frozen(get_run_model()._default_manager.all()))
        make_runs(20)
        assert sorted(run_id for chunk in chunks for run_id in chunk) == sorted(ids(early))


@pytest.mark.django_db
class TestUsage:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "Name runs, or say which with --tenant, --status or --type"),
            (["tsk_1"], "add --yes"),
            (["-"], "add --yes"),
            (["--file", "/nowhere/ids", "--yes"], "Cannot read the ids: "),
            (["--tenant", "", "--yes"], "--tenant must not be blank."),
            (["tsk_1", "--type", " ", "--yes"], "--type must not be blank."),
            (["tsk_1", "--tenant", "\udcff", "--yes"], "--tenant must not be blank."),
            (["tsk_1", "--yes", "--reason", "x" * 2001], "reason must be text of at most 2000"),
            (["tsk_1", "--yes", "--requested-by", " "], "requested_by must be text of 1 to 255"),
        ],
    )
    def test_wrong(self, args: list[str], message: str, monkeypatch: Any) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("tsk_1"))
        status, _, said = failing(*args)
        assert status == 2
        assert message in said
        assert not Cancellation.objects.exists()

    def test_wrong_status(self) -> None:
        with pytest.raises(CommandError, match="invalid choice: 'completed'"):
            run("--status", "completed")

    def test_ids_that_no_run_can_have(self, tmp_path: Path) -> None:
        file = tmp_path / "ids"
        file.write_bytes(b"\xff\xfe\n\0\n" + b"x" * 5000)
        status, out, message = failing("\udcff", "--file", str(file), "--yes")
        assert (status, message) == (1, "4 of 4 runs are not cancelled.")
        assert "\\udcff…: not_found" in out

    def test_nobody_known(self, monkeypatch: Any) -> None:
        for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a number without a name
        monkeypatch.delenv("SUDO_USER", raising=False)
        assert command.who() == f"uid {os.getuid()}@{socket.gethostname()}"
        monkeypatch.setenv("SUDO_USER", "ann")
        assert command.who() == f"ann as uid {os.getuid()}@{socket.gethostname()}"


@pytest.mark.django_db(transaction=True)
def test_database_that_gives_up_says_what_was_done() -> None:
    runs = make_runs(250)
    calls = []

    def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        calls.append(sql)
        if "UPDATE" in sql and sum("UPDATE " in call and " SET " in call for call in calls) > 1:
            params = None
            sql = "SELECT no_such_column FROM no_such_table"
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail):
        status, out, message = failing(*ids(runs), "--yes")
    assert status == 1
    assert out == "100 runs are cancelled.\n"
    assert message.startswith("The database gave up: ")
    assert message.endswith(": 150 of 250 runs were not looked at.")
    assert statuses(*runs) == ["cancelled"] * 100 + ["queued"] * 150


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("statement", "done"), [("COUNT(*)", 0), ("LIMIT 100", 100)])
def test_database_that_gives_up_between_two_transactions(statement: str, done: int) -> None:
    runs = make_runs(150)

    asked = []

    def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        asked.extend([sql] if statement in sql else [])
        if len(asked) > done // 100:
            sql, params = "SELECT no_such_column FROM no_such_table", None
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail):
        status, out, message = failing("--status", "queued", "--yes")
    assert status == 1
    assert message.startswith("The database gave up: ")
    assert out == (f"{done} runs are cancelled.\n" if done else "")
    assert statuses(*runs).count("cancelled") == done


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("answer", "status"),
    [("y\n", "cancelled"), ("YES\n", "cancelled"), ("n\n", "queued"), ("", "queued")],
)
def test_answers(answer: str, status: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    run, err = make_run(), io.StringIO()
    refused = pytest.raises(CommandError, match="Nothing has been cancelled")
    with refused if status == "queued" else contextlib.nullcontext():
        call_command("cancel_runs", run.run_id, stdout=io.StringIO(), stderr=err)
    assert "Cancel 1 runs and everything below them? [y/N] " in err.getvalue()
    assert statuses(run) == [status]


@pytest.mark.django_db
class TestSignals:
    def test_stops_between_two_transactions(self) -> None:
        runs = make_runs(250)

        def interrupt(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("UPDATE"):
                signal.raise_signal(signal.SIGINT)
            return execute(sql, params, many, context)

        with connection.execute_wrapper(interrupt):
            status, out, message = failing(*ids(runs), "--yes")
        assert (status, out) == (130, "100 runs are cancelled.\n")
        assert message == "Interrupted: 150 of 250 runs were not looked at."
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_what_is_ignored_stays_ignored(self) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with command.stopping(OutputWrapper(io.StringIO())) as received:
                signal.raise_signal(signal.SIGINT)
            assert received == []
        finally:
            signal.signal(signal.SIGINT, before)


@pytest.mark.django_db
def test_from_a_thread_without_signals() -> None:
    """Only the main thread of a process can handle them."""
    seen = []

    def work() -> None:
        with command.stopping(OutputWrapper(io.StringIO())) as received:
            seen.append(received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]


def test_without_tqdm(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with command.progress(3) as advance:
        advance(3)


@pytest.mark.django_db(transaction=True)
class TestProcess:
    """The command as people run it."""

    @pytest.fixture
    def environment(self) -> dict[str, str]:
        settings = os.environ["DJANGO_SETTINGS_MODULE"]
        url = {"DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": settings}
        return {**os.environ, **url, "TERM": "xterm"}

    def start(self, environment: dict[str, str], *args: str, **options: Any) -> Any:
        arguments = [sys.executable, "-W", "error", "-m", "django", "cancel_runs", *args]
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, **options)

    def test_silent_progress_and_status_off_a_terminal(self, environment: dict[str, str]) -> None:
        runs = make_runs(120)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(environment, "-", "--yes", **pipes)
        out, err = process.communicate("\n".join(ids(runs)).encode(), timeout=60)
        assert (process.returncode, out, err) == (0, b"120 runs are cancelled.\n", b"")
        process = self.start(environment, "nope", "--yes", **pipes)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert b"1 of 1 runs are not cancelled." in err
        process = self.start(environment, "--no-such-option", **pipes)
        assert process.communicate(timeout=60)[0] == b""
        assert process.returncode == 2

    def on_terminal(self, environment: dict[str, str], answer: bytes, *args: str) -> Any:
        """Run the command on a terminal and return its status and what it showed."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = self.start(environment, *args, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, answer)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # it has ended
                break
        os.close(ours)
        return process.wait(60), shown.decode()

    def test_asks_on_a_terminal(self, environment: dict[str, str]) -> None:
        runs = make_runs(3)
        status, shown = self.on_terminal(environment, b"n\n", *ids(runs))
        assert status == 2
        assert "Cancel 3 runs and everything below them? [y/N]" in shown
        assert "Nothing has been cancelled." in shown
        assert statuses(*runs) == ["queued"] * 3
        status, shown = self.on_terminal(environment, b"y\n", *ids(runs))
        assert status == 0
        assert "0/3" in shown  # the bar
        assert statuses(*runs) == ["cancelled"] * 3

    def test_end_of_input_is_a_no(self, environment: dict[str, str]) -> None:
        run = make_run()
        assert self.on_terminal(environment, b"\x04", run.run_id)[0] == 2
        assert statuses(run) == ["queued"]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupt_stops_between_chunks(
        self, environment: dict[str, str], tmp_path: Path, number: signal.Signals
    ) -> None:
        runs = make_runs(5_000)
        file = tmp_path / "ids"
        file.write_text("\n".join(ids(runs)))
        arguments = ("--file", str(file), "--yes", "--json")
        process = self.start(
            environment, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while not Cancellation.objects.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert b"Stopping after this transaction" in err
        done = json.loads(out)["cancelled"]
        assert 0 < len(done) < 5_000
        assert len(done) % 100 == 0
        assert f"Interrupted: {5_000 - len(done)} of 5000 runs were not looked at." in err.decode()
        cancelled = get_run_model()._default_manager.filter(status="cancelled")
        assert set(cancelled.values_list("run_id", flat=True)) == set(done)

    def test_what_the_shell_has_ignored_stays_ignored(self, environment: dict[str, str]) -> None:
        runs = make_runs(1_000)
        ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(environment, "-", "--yes", preexec_fn=ignore, **pipes)
        process.stdin.write("\n".join(ids(runs)).encode())
        process.stdin.flush()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, b"1000 runs are cancelled.\n"), err

    def test_second_interrupt_stops_at_once_and_says_what_was_done(
        self, environment: dict[str, str]
    ) -> None:
        """The second chunk waits for a lock that somebody else holds."""
        if IS_SQLITE:
            pytest.skip("SQLite locks no rows; see .ci/run")
        runs = make_runs(150)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with transaction.atomic():
            get_run_model()._default_manager.select_for_update().get(pk=runs[-1].pk)
            process = self.start(environment, *ids(runs), "--yes", **pipes)
            deadline = time.monotonic() + 60
            while statuses_elsewhere(runs) < 100 and time.monotonic() < deadline:
                time.sleep(0.05)
            for _ in range(2):
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert out == b"100 runs are cancelled.\n"
        assert b"Interrupted: 50 of 150 runs were not looked at." in err
