"""A PostgreSQL server of the tests' own, which they may stop, fill and overload."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.test.utils import override_settings

from tests.services import skip_without

FOLDERS = "/usr/lib/postgresql/*/bin/initdb"
"""Where Debian has the programs that are not in the PATH."""


class NoMigrations:
    """Lets all tables be made as the models have them, which takes a second."""

    def __contains__(self, app: str) -> bool:
        return True

    def __getitem__(self, app: str) -> None:
        return None


class PostgresServer:
    """A server in a folder of its own, on a free port.

    Args:
        folder: Where to put it. Removed by whoever has made it.
        options: Settings of the server, such as ``max_connections``.

    Attributes:
        port: Where it listens.
        user: Whose process it is.
        is_running: Whether it is meant to be up.
    """

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder = folder
        self._bin = find_programs()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        # root may not run it.
        self.user = "postgres" if os.geteuid() == 0 else os.geteuid()
        shutil.chown(folder, self.user)
        arguments = ["--username=tests", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        self._run("initdb", *arguments, "--locale=C")
        fixed = {"port": self.port, "listen_addresses": "127.0.0.1", "fsync": "off"}
        fixed |= {"unix_socket_directories": "", "shared_buffers": "16MB", **options}
        with (folder / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in fixed.items())
        self.start()

    def start(self) -> None:
        self.is_running = True
        self._run("pg_ctl", "--wait", "--timeout=120", "--log=/dev/null", "start")

    def stop(self, mode: Literal["immediate", "fast"] = "immediate") -> None:
        """Stop the server; immediately means without a word to anybody, as when it crashes."""
        self.is_running = False
        self._run("pg_ctl", "--wait", "--timeout=120", f"--mode={mode}", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._bin / program, f"--pgdata={self.folder}", *arguments],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self.user,
        )


def find_programs() -> Path:
    """Return the folder with initdb; skip the test if there is none."""
    in_path = shutil.which("initdb")
    found = [Path(in_path)] if in_path else sorted(Path("/").glob(FOLDERS[1:]))
    if not found:
        skip_without("initdb of PostgreSQL")
    return found[-1].resolve().parent  # a link may be there without the other programs


@contextmanager
def own_server(folder: Path | None = None, **options: object) -> Iterator[PostgresServer]:
    """Run a server.

    Args:
        folder: An empty folder for it; by default a new one, which is removed afterwards.
        options: Settings of the server.
    """
    made = Path(tempfile.mkdtemp()) if folder is None else folder
    try:
        server = PostgresServer(made, **options)
        try:
            yield server
        finally:
            server.stop()
    finally:
        if folder is None:
            shutil.rmtree(made)


@contextmanager
def used_by_django(server: PostgresServer) -> Iterator[None]:
    """Let the connections of all threads go to the server, which has our tables."""
    connections.close_all()
    here: dict[str, Any] = {"HOST": "127.0.0.1", "PORT": server.port}
    here |= {"USER": "tests", "NAME": "postgres"}
    # Here, what was committed has to survive.
    here["OPTIONS"] = {**connection.settings_dict["OPTIONS"], "options": "-c synchronous_commit=on"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setitem(connection.settings_dict, name, value)
        try:
            if not connection.introspection.table_names():
                with override_settings(MIGRATION_MODULES=NoMigrations()):
                    call_command("migrate", run_syncdb=True, verbosity=0)
            yield
        finally:
            connections.close_all()
