"""An executor under test: how the tests reach it, and how its worker is started and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, ClassVar

from django.db import connections

from django_run_cancel.testing.conformance.proxy import Proxy
from django_run_cancel.testing.helpers import wait_until
from django_run_cancel.testing.jobs import TRACE_FOLDER


class Harness:
    """An executor with a worker process. Subclass it for each executor.

    The worker calls ``testing.jobs.run_job`` inside an ``execution`` of the run, runs one job at a
    time, and tries one that raised ``JobFailed`` again after a second or two, ``jobs.TRIES`` times
    in all; until then its run is ``queued``.

    Attributes:
        backend: Dotted path of the backend.
        ready: What the worker logs when it takes jobs.
        checks: Ids of the system checks that the backend always returns.
        timeout: The option TIMEOUT of the backend.
        broker_url: The broker, as the worker reaches it; None if jobs wait in the database.
        proxy: The broker, as the tests reach it.
        name: A unique name, for queues.
        folder: Where the traces of the jobs are.
        log: The output of the worker.
    """

    backend: ClassVar[str]
    ready: ClassVar[str]
    checks: ClassVar[list[str]] = []
    timeout: ClassVar[float] = 1.0

    def __init__(self, folder: Path, broker_url: str | None, proxy: Proxy | None) -> None:
        self.folder = folder
        self.broker_url = broker_url
        self.log = folder / "worker.log"
        self.name = f"tested-{uuid.uuid4().hex[:12]}"
        self._proxy = proxy
        self._worker: subprocess.Popen[bytes] | None = None

    @classmethod
    def broker(cls) -> str | None:
        """Return the URL of the broker; None if jobs wait in the database of the runs."""
        return None

    @property
    def proxy(self) -> Proxy:
        """The broker as the tests reach it, which they can take down."""
        assert self._proxy is not None, "This executor has no broker."
        return self._proxy

    def options(self) -> dict[str, Any]:
        """Return the OPTIONS of the backend."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command line of the worker, without Python itself."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return environment variables that the worker needs, besides those of Django."""
        return {}

    def publish(self, title: str) -> str:
        """Publish a task that an integration tracks, as a host does, and return its id.

        The task takes the title of a job and calls ``jobs.run_current_job()``.
        """
        raise NotImplementedError

    def set_up(self) -> None:
        """Prepare the side of the tests, before the backend is made."""

    def tear_down(self) -> None:
        """Remove what the tests have left in the broker."""

    def worker_environment(self) -> dict[str, str]:
        """Return the whole environment of a worker, which leads it to the test database."""
        names = {alias: str(connections[alias].settings_dict["NAME"]) for alias in connections}
        return {
            **os.environ,
            **self.environment(),
            TRACE_FOLDER: str(self.folder),
            "RUN_CANCEL_HOST_SETTINGS": os.environ["DJANGO_SETTINGS_MODULE"],
            "RUN_CANCEL_TEST_DATABASES": json.dumps(names),
            "DJANGO_SETTINGS_MODULE": "django_run_cancel.testing.worker_settings",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUNBUFFERED": "1",
        }

    def online(self) -> None:
        """Start the worker unless it runs, and wait until it takes jobs.

        Raises:
            AssertionError: It does not come up.
        """
        if self._worker is not None and self._worker.poll() is None:
            return
        self.kill()
        with self.log.open("wb") as log:
            self._worker = subprocess.Popen(
                [sys.executable, *self.command()],
                env=self.worker_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._is_ready, "the worker")
        except AssertionError as error:
            self.kill()
            raise AssertionError(
                f"The worker did not come up:\n{self.log.read_text(errors='replace')}"
            ) from error

    def _is_ready(self) -> bool:
        assert self._worker is not None
        assert self._worker.poll() is None, "The worker has ended."
        return self.ready in self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill the worker with all its children, as when its machine is switched off."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            kill_session(self._worker.pid)
            self._worker = None


def kill_session(leader: int) -> None:
    """Kill the processes in the session that a process led; their groups may be others."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            session = path.read_text().rpartition(")")[2].split()[3]
            if int(session) == leader:
                os.kill(int(path.parent.name), signal.SIGKILL)
