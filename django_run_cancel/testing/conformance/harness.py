"""``Harness``: an executor under test, and the start and end of its worker process."""

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
    """An executor under test, with a worker process. Subclass it for each executor.

    The worker must execute one job at a time, by calling ``testing.jobs.run_job`` inside of
    ``execution()``. It must retry a job that raised ``JobFailed`` after a second or two, up to
    ``jobs.TRIES`` tries in total; until the retry, the run is ``queued``.

    Attributes:
        backend: Dotted path of the backend.
        ready: Text that the worker logs when it is ready for jobs.
        checks: Ids of the system checks that the backend always returns.
        timeout: The option TIMEOUT of the backend.
        broker_url: URL of the broker for the worker; None if jobs wait in the database.
        proxy: Proxy of the broker for the tests.
        name: A unique name, for queues.
        folder: Folder of the jobs' traces.
        log: File with the output of the worker.
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
        """Proxy of the broker for the tests, which can interrupt it."""
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
        """Publish a task as a host does, and return its id.

        The integration makes the task a run. Its argument is the title of a job, and its function
        calls ``jobs.run_current_job()``.
        """
        raise NotImplementedError

    def set_up(self) -> None:
        """Prepare the test process, before the backend is created."""

    def tear_down(self) -> None:
        """Delete queues and other data of the tests from the broker."""

    def worker_environment(self) -> dict[str, str]:
        """Return the environment of a worker, including the names of the test databases."""
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
        """Start the worker unless it is running, and wait until it is ready for jobs.

        Raises:
            AssertionError: The worker does not become ready.
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
        """Kill the worker and all its child processes."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            kill_session(self._worker.pid)
            self._worker = None


def kill_session(leader: int) -> None:
    """Kill all processes of a session, in all of its process groups."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended in the meantime
            session = path.read_text().rpartition(")")[2].split()[3]
            if int(session) == leader:
                os.kill(int(path.parent.name), signal.SIGKILL)
