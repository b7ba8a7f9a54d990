"""``manage.py cancel_runs`` as people run it: as a process, on terminals and off them."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from django_run_cancel.cancellation import advance_bulk_cancellations
from django_run_cancel.models import Cancellation, get_run_model
from tests.api.servers import database_url
from tests.helpers import IS_SQLITE, ids, make_run, make_runs, statuses
from tests.management.helpers import RECORD, hide_id

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parent.parent.parent

MANY = 10_000
"""So many runs that it takes seconds."""


def count_cancelled() -> int:
    return get_run_model()._base_manager.filter(status="cancelled").count()  # type: ignore[no-any-return]


def cancelled_elsewhere() -> int:
    """Return how many are cancelled, as another connection sees it."""

    def count() -> int:
        try:
            return count_cancelled()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(count).result()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(*args: str, **options: Any) -> subprocess.Popen[bytes]:
    settings = os.environ["DJANGO_SETTINGS_MODULE"]
    url = {"DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": settings}
    arguments = [sys.executable, "-W", "error", "-m", "django", "cancel_runs", *args]
    environment = {**os.environ, **url, "TERM": "xterm"}
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, **options)


def start_off_terminals(*args: str, **options: Any) -> subprocess.Popen[bytes]:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return start(*args, **pipes, **options)


class Terminal:
    """A command on a terminal."""

    def __init__(self, *args: str) -> None:
        self.screen, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = start(*args, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.shown = ""

    def type(self, keys: bytes) -> None:
        os.write(self.screen, keys)

    def read_until(self, text: str) -> None:
        while text not in self.shown:
            self.shown += os.read(self.screen, 4096).decode()

    def end(self) -> int:
        """Read what is shown until the command ends, and return its exit status."""
        try:
            while True:
                self.shown += os.read(self.screen, 4096).decode()
        except OSError:  # it has ended
            return self.process.wait(60)


@contextmanager
def on_terminal(*args: str) -> Iterator[Terminal]:
    terminal = Terminal(*args)
    try:
        yield terminal
    finally:
        os.close(terminal.screen)
        terminal.process.kill()
        terminal.process.wait()


def test_silent_progress_and_status_off_a_terminal() -> None:
    runs = make_runs(120)
    process = start_off_terminals("-", "--yes")
    out, err = process.communicate("\n".join(ids(runs)).encode(), timeout=60)
    assert (process.returncode, hide_id(out.decode()), err) == (
        0,
        f"120 runs are cancelled.\n{RECORD}",
        b"",
    )
    process = start_off_terminals("nope", "--yes")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"1 of 1 run is not cancelled." in err
    process = start_off_terminals("--no-such-option")
    assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == 2


def test_asks_on_a_terminal() -> None:
    runs = make_runs(3, title="Crawl")
    with on_terminal(*ids(runs)) as terminal:
        terminal.type(b"n\n")
        assert terminal.end() == 2
    assert f"  {runs[0].run_id}  Crawl" in terminal.shown
    assert "Cancel 3 runs and everything below them? [y/N]" in terminal.shown
    assert "Nothing has been cancelled." in terminal.shown
    assert statuses(*runs) == ["queued"] * 3
    with on_terminal("--status", "queued") as terminal:
        terminal.type(b"y\n")
        assert terminal.end() == 0
    assert "0/3" in terminal.shown  # the bar
    assert statuses(*runs) == ["cancelled"] * 3


def test_end_of_input_is_a_no() -> None:
    run = make_run()
    with on_terminal(run.run_id) as terminal:
        terminal.type(b"\x04")
        assert terminal.end() == 2
    assert statuses(run) == ["queued"]


def test_interrupt_off_a_terminal__the_workers_go_on(tmp_path: Path) -> None:
    runs = make_runs(MANY)
    file = tmp_path / "ids"
    file.write_text("\n".join(ids(runs)))
    process = start_off_terminals("--file", str(file), "--yes", "--json")
    wait_for(count_cancelled)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Stopping after this transaction" in err
    done = json.loads(out)["cancelled"]
    assert 0 < len(done) < MANY
    assert f"Interrupted: {MANY - len(done):,} of {MANY:,} runs are left to" in err.decode()
    cancelled = get_run_model()._base_manager.filter(status="cancelled")
    assert set(cancelled.values_list("run_id", flat=True)) == set(done)
    assert Cancellation.objects.get().state == "running"


def test_interrupt_on_a_terminal__asks() -> None:
    make_runs(MANY)
    with on_terminal("--status", "queued", "--yes") as terminal:
        wait_for(count_cancelled)
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("Otherwise the delivery workers cancel it. [y/N]")
        done = count_cancelled()
        terminal.type(b"y\n")
        assert terminal.end() == 130
    assert f"Abort the rest, {MANY - done:,} runs?" in terminal.shown
    assert f"{done:,} runs are cancelled." in terminal.shown
    assert Cancellation.objects.get().state == "aborted"
    advance_bulk_cancellations(10)
    assert count_cancelled() == done


def test_killed__the_workers_go_on() -> None:
    runs = make_runs(MANY)
    process = start_off_terminals("--status", "queued", "--yes")
    wait_for(count_cancelled)
    process.kill()
    process.communicate(timeout=60)
    assert 0 < count_cancelled() < MANY
    while advance_bulk_cancellations(10):
        pass
    assert count_cancelled() == MANY
    record = Cancellation.objects.get()
    assert (record.state, record.cancelled_count) == ("completed", MANY)
    assert record.items.count() == len(runs)


def test_two_share_the_work() -> None:
    """A delivery worker that takes part does not confuse the one that waits."""
    make_runs(MANY)
    process = start_off_terminals("--status", "queued", "--yes")
    wait_for(count_cancelled)
    advance_bulk_cancellations(60)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert hide_id(out.decode()) == f"{MANY:,} runs are cancelled.\n{RECORD}"
    assert Cancellation.objects.get().items.count() == MANY


def test_what_the_shell_has_ignored_stays_ignored() -> None:
    runs = make_runs(1_000)
    ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    process = start_off_terminals("-", "--yes", preexec_fn=ignore)
    assert process.stdin is not None
    process.stdin.write("\n".join(ids(runs)).encode())
    process.stdin.flush()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert hide_id(out.decode()) == f"1,000 runs are cancelled.\n{RECORD}"


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows; see .ci/run")
def test_second_interrupt_stops_at_once_and_says_what_was_done() -> None:
    """The second transaction waits for a lock that somebody else holds."""
    runs = make_runs(150)
    with transaction.atomic():
        get_run_model()._base_manager.select_for_update().get(pk=runs[-1].pk)
        process = start_off_terminals(*ids(runs), "--yes")
        wait_for(lambda: cancelled_elsewhere() == 100)
        for _ in range(2):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert hide_id(out.decode()) == f"100 runs are cancelled.\n{RECORD}"
    assert b"Interrupted: 50 of 150 runs are left to the delivery workers" in err
