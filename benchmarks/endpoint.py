"""What ``POST /v1/runs/cancel`` costs over HTTP, against views that do less.

Run it with ``python -m benchmarks.endpoint [--rounds N] [--save]``. gunicorn (two processes of four
threads) and uvicorn (one process) serve the API, an empty view of REST framework, and such a view
with hand-written SQL. Clients keep their connections. ``DATABASE_URL`` chooses the server of the
runs.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.figures import Figures, arguments, own_database

ROWS = 20_000
"""Finished runs in the table, so that the database plans as for a table that has been in use."""

REQUESTS = {1: 160, 100: 48}
"""Requests in a round, by the number of ids in each."""

PROCESSES = {"gunicorn": "2", "uvicorn": "1"}
"""Processes of each server.

With several, uvicorn leaves Nagle's algorithm on: each answer then waits 40 ms for the client.
"""

PATHS = {"endpoint": "/v1/runs/cancel", "by hand": "/floor", "empty": "/empty"}


def main() -> None:
    given = arguments(__doc__, rounds=5)
    figures = Figures(
        "endpoint",
        *("server", "ids", "clients", "requests a second", "by hand", "empty view"),
        "times by hand",
    )
    with own_database():
        from benchmarks.cancelling import fill
        from tests.api.servers import running

        fill(ROWS)
        for server, processes in PROCESSES.items():
            os.environ["WEB_CONCURRENCY"] = processes  # both read it
            with running(server) as port:
                for count in REQUESTS:
                    for clients in (1, 8):
                        seconds = least_seconds(port, count, clients, given.rounds)
                        ratio = seconds["endpoint"] / seconds["by hand"]
                        rates = (round(1 / each) for each in seconds.values())
                        figures.add(server, count, clients, *rates, round(ratio, 2))
        if given.save:
            figures.save()


def least_seconds(port: int, count: int, clients: int, rounds: int) -> dict[str, float]:
    """Return the least seconds of a request, for each of ``PATHS``."""
    from django_run_cancel.models import ApiKey

    key = ApiKey.issue(f"benchmark {port} {count} {clients}")[1]
    seconds: dict[str, list[float]] = {name: [] for name in PATHS}
    for _ in range(rounds):
        for name, path in PATHS.items():
            seconds[name].append(measure(port, path, key, make_bodies(count), clients))
    return {name: min(each) for name, each in seconds.items()}


def make_bodies(count: int) -> list[bytes]:
    """Return the bodies of a round, each with running runs of its own."""
    from tests.helpers import make_runs

    runs = make_runs(count * REQUESTS[count], "running")
    parts = [runs[start : start + count] for start in range(0, len(runs), count)]
    return [
        # The endpoint ignores the keys.
        json.dumps(
            {"run_ids": [run.run_id for run in part], "pks": [run.pk for run in part]}
        ).encode()
        for part in parts
    ]


def measure(port: int, path: str, key: str, bodies: list[bytes], clients: int) -> float:
    """Send all bodies from so many clients at once, and return the seconds for one of them."""
    from tests.api.servers import Connection, json_headers

    def send(mine: list[bytes]) -> None:
        with Connection(port) as client:
            for body in mine:
                answer: Any = client.send("POST", path, body, **json_headers(key))
                assert answer.status == 200, answer
                assert json.loads(answer.body)["failed"] == []

    parts = [bodies[number::clients] for number in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        list(pool.map(send, parts))
        return (time.perf_counter() - started) / len(bodies)


if __name__ == "__main__":
    main()
