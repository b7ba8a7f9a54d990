"""Worker processes of a web server, killed with SIGKILL while clients ask them to cancel runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.testing import DummyBackend, wait_until
from tests.api.servers import json_headers, running
from tests.faults.helpers import IS_LONG, finish_everything
from tests.faults.invariants import assert_rows_sound
from tests.helpers import ids, make_runs

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Only Linux has /proc."),
]

KILLS = 20 if IS_LONG else 2
CLIENTS = 4


def children_of(pid: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(path.parent.name)


def server_workers() -> list[int]:
    """Return the processes that the one server which this process has started has started."""
    servers = [
        pid
        for pid in children_of(os.getpid())
        if b"tests.api.served:wsgi" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return [worker for server in servers for worker in children_of(server)]


class Clients:
    """Ask to cancel runs, three at a time, until they are told to stop.

    Attributes:
        asked: The runs of each request, with the answer; None if it never came.
    """

    def __init__(self, port: int, key: str) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/runs/cancel"
        self._headers = {name.replace("_", "-"): text for name, text in json_headers(key).items()}
        self._lock = threading.Lock()
        self.asked: list[tuple[list[Any], Any]] = []
        self.done = threading.Event()

    def ask(self, runs: list[Any]) -> Any:
        body = {"run_ids": ids(runs)}
        with suppress(httpx.TransportError):  # the worker was killed, or is not up yet
            response = httpx.post(self._url, json=body, headers=self._headers, timeout=120)
            assert response.headers["Content-Type"] == "application/json"
            return response.status_code, response.json()
        return None

    def work(self, runs: list[list[Any]]) -> None:
        while runs and not self.done.is_set():
            some = runs.pop()
            answer = self.ask(some)
            with self._lock:
                self.asked.append((some, answer))

    def answers(self) -> int:
        return sum(answer is not None for _, answer in self.asked)

    def lost(self) -> list[list[Any]]:
        """Return the runs of each request without an answer."""
        return [runs for runs, answer in self.asked if answer is None]


def test_workers_killed(dummy: DummyBackend, secret: str) -> None:
    everything = make_runs(3 * 500, "running")
    groups = [everything[start : start + 3] for start in range(0, len(everything), 3)]
    shares = [groups[number::CLIENTS] for number in range(CLIENTS)]
    with running("gunicorn") as port, ThreadPoolExecutor(CLIENTS) as pool:
        clients = Clients(port, secret)
        futures = [pool.submit(clients.work, share) for share in shares]
        try:
            kills = 0
            while kills < KILLS or not clients.lost():  # it may have been between two requests
                before = clients.answers()
                wait_until(lambda before=before: clients.answers() > before + 8, "answers")
                (worker,) = server_workers()
                os.kill(worker, signal.SIGKILL)
                wait_until(lambda worker=worker: worker not in server_workers(), "the next worker")
                wait_until(server_workers, "the next worker")
                kills += 1
        finally:
            clients.done.set()
        for future in futures:
            future.result(120)
        assert_rows_sound()
        status = dict(get_run_model()._base_manager.values_list("run_id", "status"))
        for runs, answer in clients.asked:
            true = (200, {"cancelled": ids(runs), "failed": []})
            now = {status[run.run_id] for run in runs}
            if answer is not None:
                assert (answer, now) == (true, {"cancelled"})
            else:
                assert len(now) == 1, "Half of a request was stored."
        wait_until(lambda: clients.ask(groups[0]) is not None, "the next worker")
        for runs in clients.lost():
            assert clients.ask(runs) == (200, {"cancelled": ids(runs), "failed": []})
    finish_everything()
    assert_rows_sound(everything_done=True)
    assert not CancellationItem.objects.filter(outcome="not_found").exists()
