"""Process backend: starts a process on this host for each run, and sends it SIGTERM or SIGKILL.

The external id is an environment variable of the process, which its own child processes inherit. So
the backend finds all of them, even after other processes have died, and never mistakes a process
with a reused pid for one of them.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import socket
import subprocess  # for commands of the host's settings  # nosec B404
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_run_cancel.backends.base import (
    BackendError,
    BaseBackend,
    StopOutcome,
    StopRequest,
    TaskCall,
)
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.db.retry import retry_on_outage
from django_run_cancel.models import AbstractRun, run_rows
from django_run_cancel.safe_text import printable
from django_run_cancel.states import WAITING, RunStatus

MARKER = "RUN_CANCEL_PROCESS"
"""Name of the environment variable with the external id."""

MACHINE_ID = "/etc/machine-id"

GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
"""Errors that mean that a process does not exist, or that we may not read its environment."""

logger = logging.getLogger("django_run_cancel")


class ProcessBackend(BaseBackend):
    """Starts a process on this host when a run is dispatched; there is no queue."""

    can_stop_running = True
    can_force = True
    required_options = frozenset({"COMMAND"})
    optional_options = frozenset({"CWD", "ENV"})
    dispatch_options = frozenset({"cwd", "env"})

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        super().__init__(alias, options)
        command = self.options["COMMAND"]
        if (
            not isinstance(command, list | tuple)
            or not all(isinstance(part, str) for part in command)
            or not any("{run_id}" in part for part in command)
        ):
            raise ImproperlyConfigured(
                f"COMMAND of the backend {alias!r} must be a list of strings with {{run_id}} in it."
            )

    def check_call(self, call: TaskCall) -> None:
        """Validate that the command has a ``{task}`` if needed, and that arguments are strings."""
        wants_task = any("{task}" in part for part in self.options["COMMAND"])
        if wants_task != (call.task is not None):
            raise TypeError(
                f"COMMAND of the backend {self.alias!r} has {'a' if wants_task else 'no'} {{task}}."
            )
        if call.kwargs or not all(isinstance(part, str) for part in call.args):
            raise TypeError("A process takes positional arguments only, and they must be texts.")
        super().check_call(call._replace(task=None))

    def new_external_id(self, run: AbstractRun) -> str:
        """Return an id that contains the host and the user of the process."""
        return f"{uuid.uuid4()}@{_host_identity()}/{os.getuid()}"

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check that the system has pidfds and ``/proc``, and that the program exists."""
        if not hasattr(os, "pidfd_open") or not os.path.exists("/proc/self/environ"):
            return [
                Error(
                    f"The backend {self.alias!r} needs Linux 5.3 or newer, with /proc.",
                    hint="Use another backend on this system.",
                    id="django_run_cancel.E013",
                )
            ]
        program = self.options["COMMAND"][0]
        if shutil.which(program, path=self.options.get("ENV", {}).get("PATH")) is None:
            return [
                Error(
                    f"The backend {self.alias!r} cannot find the program {program!r}.",
                    hint="Write its full path in COMMAND; for Python, sys.executable.",
                    id="django_run_cancel.E014",
                )
            ]
        return []

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Start the process, unless it is running already."""
        # SPT_NOENV keeps setproctitle from overwriting the environment in /proc.
        marks = {MARKER: run.external_id, "SPT_NOENV": "1"}
        try:
            if error := self._unreachable_error(run.external_id):
                raise error
            with _Processes([run.external_id]) as started:
                if started.found:
                    return
            child = subprocess.Popen(  # the command is a setting  # noqa: S603  # nosec B603
                [*self._command(run, call), *call.args],
                cwd=call.options.get("cwd", self.options.get("CWD")),
                env={
                    **os.environ,
                    **self.options.get("ENV", {}),
                    **call.options.get("env", {}),
                    **marks,
                },
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(f"The process could not be started: {error}") from error
        # A thread waits for the process, which would otherwise become a zombie.
        name = f"wait for {child.pid}"
        threading.Thread(
            target=_wait_for_process, args=[child, run], name=name, daemon=True
        ).start()

    def _command(self, run: AbstractRun, call: TaskCall) -> list[str]:
        return [
            part.replace("{task}", call.task or "").replace("{run_id}", run.run_id)
            for part in self.options["COMMAND"]
        ]

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Send a signal to all processes of the runs, and wait for them until the timeout."""
        external_ids = {request.external_id for request in requests}
        results: dict[str, StopOutcome | Exception] = {}
        try:
            for external_id in external_ids:
                results[external_id] = self._unreachable_error(external_id) or StopOutcome.STOPPED
            reachable = [key for key, result in results.items() if result is StopOutcome.STOPPED]
            return results | dict.fromkeys(self._signal(reachable, force), StopOutcome.TOLD)
        except OSError as error:  # for example, no file descriptors left
            return dict.fromkeys(external_ids, error)

    def _signal(self, external_ids: list[str], force: bool) -> list[str]:
        """Send a signal and wait; return the ids of processes that are still running."""
        deadline = time.monotonic() + self.timeout
        remaining = external_ids
        while remaining:
            with _Processes(remaining) as processes:
                processes.send(signal.SIGKILL if force else signal.SIGTERM)
                processes.wait(deadline)
            remaining = _ids_of_processes(external_ids)
            # Also kill processes that were started in the meantime; SIGTERM is sent only once.
            if not force or time.monotonic() > deadline:
                break
        return remaining

    def _unreachable_error(self, external_id: str) -> BackendError | None:
        place, _, user = external_id.partition("@")[2].rpartition("/")
        if place != _host_identity():
            return BackendError(f"{external_id} is a process of another host or container.")
        if user != str(os.getuid()) and os.geteuid() != 0:
            return BackendError(f"{external_id} is a process of another user.")
        return None


def _wait_for_process(child: subprocess.Popen[bytes], run: AbstractRun) -> None:
    """Wait for a process; if it ends without starting its run, set the run to failed."""
    status = child.wait()
    try:
        if not _ids_of_processes([run.external_id]):
            waiting = run_rows(
                run_id=run.run_id, external_id=run.external_id, started_at=None
            ).filter(is_one_of("status", WAITING))
            reason = f"Its process has ended with the exit status {status}, and has not started it."
            values = {"status": RunStatus.FAILED, "failure_reason": reason}
            retry_on_outage(
                lambda: waiting.update(**values, finished_at=DatabaseNow()), using=waiting.db
            )
    except Exception:
        logger.exception(
            "Cannot record the end of run %s, whose process has ended.", printable(run.run_id)
        )
    finally:
        connections.close_all()


class _Processes:
    """Running processes with these ids, held by pidfds so that their pids cannot be reused."""

    def __init__(self, external_ids: Iterable[str]) -> None:
        self.found: dict[str, list[int]] = defaultdict(list)
        wanted = frozenset(external_ids)
        with ExitStack() as stack:
            for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
                if _external_id(pid) not in wanted:
                    continue
                with suppress(ProcessLookupError):
                    descriptor = os.pidfd_open(pid)
                    stack.callback(os.close, descriptor)
                    # Read again: the pid may have been reused before pidfd_open().
                    external_id = _external_id(pid)
                    if external_id in wanted:
                        self.found[external_id].append(descriptor)
            self._stack = stack.pop_all()

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, signum: int) -> None:
        for descriptors in self.found.values():
            for descriptor in descriptors:
                # The process has ended, or has changed its user; a later call finds it again.
                with suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(descriptor, signum)

    def wait(self, deadline: float) -> None:
        """Wait until all processes have ended, or until the deadline."""
        alive = select.poll()
        watched = [descriptor for descriptors in self.found.values() for descriptor in descriptors]
        for descriptor in watched:
            alive.register(descriptor, select.POLLIN)
        count = len(watched)
        while count and (seconds := deadline - time.monotonic()) > 0:
            for descriptor, _ in alive.poll(seconds * 1000):
                alive.unregister(descriptor)
                count -= 1


def _ids_of_processes(external_ids: Iterable[str]) -> list[str]:
    """Return the ids that have running processes. Reads ``/proc`` twice.

    During ``exec()``, a process has an empty environment for a moment.
    """
    ids: set[str] = set()
    for pause in (0.0, 0.02):
        time.sleep(pause)
        with _Processes(external_ids) as processes:
            ids.update(processes.found)
    return list(ids)


def _external_id(pid: int) -> str:
    """Return the external id in the environment of a process; blank without one.

    Also blank if the process has ended, or belongs to another user.

    Raises:
        OSError: The environment could not be read for another reason.
    """
    environment = _read(f"/proc/{pid}/environ")
    if not environment:  # the main thread may have ended before the others
        with suppress(*GONE):
            threads = os.listdir(f"/proc/{pid}/task")
            environment = b"".join(_read(f"/proc/{pid}/task/{each}/environ") for each in threads)
    mark = f"{MARKER}=".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(mark):
            return variable[len(mark) :].decode(errors="replace")
    return ""


def _read(path: str) -> bytes:
    with suppress(*GONE), open(path, "rb") as file:
        return file.read()
    return b""


def _host_identity() -> str:
    """Return the host name, the machine id and the pid namespace, which differs in containers.

    The machine id, if there is one, distinguishes hosts with the same name; the number of the first
    pid namespace is the same on all hosts.
    """
    machine = ""
    with suppress(FileNotFoundError, PermissionError), open(MACHINE_ID) as file:
        machine = file.read(64).strip()
    return f"{socket.gethostname()}/{machine}/{os.stat('/proc/self/ns/pid').st_ino}"
