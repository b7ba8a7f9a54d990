"""A client of the API, and the server that it speaks to."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from config import settings
from crawler.processes import running

from demo import DemoFailed

STARTUP_SECONDS = 60

Runs = dict[str, dict[str, Any]]
"""What the API says of runs, by their ids."""


class Answer(NamedTuple):
    """What the server said."""

    status: int
    reason: str
    headers: Any
    body: Any
    milliseconds: float


@dataclass(frozen=True)
class Client:
    """Speaks to the server as any client would."""

    url: str
    key: str

    def call(self, path: str, body: Any = None) -> Answer:
        """Send a request: GET, or POST when there is a body."""
        request = Request(  # noqa: S310 - always http, to the server started here
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"x-api-key": self.key, "Content-Type": "application/json"},
        )
        # A proxy in the environment would not find the server.
        opener = build_opener(ProxyHandler({}))
        start = time.perf_counter()
        try:
            with opener.open(request, timeout=30) as response:
                text = response.read()
        except OSError as error:
            raise DemoFailed(f"{request.get_method()} {path}: {error}") from error
        milliseconds = (time.perf_counter() - start) * 1_000
        return Answer(
            response.status, response.reason, response.headers, json.loads(text), milliseconds
        )

    def list(self, path: str, **filters: str) -> list[dict[str, Any]]:
        """Return all rows of a list, page by page."""
        rows = []
        url: str | None = f"{self.url}{path}?{urlencode({'page_size': 100, **filters})}"
        while url:
            page = self.call(url.removeprefix(self.url)).body
            rows += page["results"]
            url = page["next"]
        return rows

    def runs(self, **filters: str) -> Runs:
        """Return every run of the key's tenant, or those that filters leave, by its id."""
        return {run["run_id"]: run for run in self.list("/v1/runs", **filters)}

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run."""
        run: dict[str, Any] = self.call(f"/v1/runs/{run_id}").body
        return run


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start the example's server, and stop it at the end.

    Args:
        folder: Where its log goes.

    Yields:
        Its URL.
    """
    log = folder / "server.log"
    # Port 0: the system chooses a free one when the server binds it, and nobody can come between.
    manage = str(settings.BASE_DIR / "manage.py")
    with running(manage, "runserver", "--noreload", "127.0.0.1:0", log=log) as process:
        deadline = time.monotonic() + STARTUP_SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            if process.poll() is not None:
                raise DemoFailed(f"The server ended with status {process.returncode}.")
            if time.monotonic() > deadline:
                raise DemoFailed(f"The server did not start within {STARTUP_SECONDS} seconds.")
            time.sleep(0.05)
        yield found[0]
