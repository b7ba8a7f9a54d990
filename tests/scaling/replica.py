"""A streaming replica of a server of the tests' own, as Django's database ``replica``."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connection, connections

from tests.docs.helpers import TEXT, blocks
from tests.execution.helpers import wait_until
from tests.faults.postgres_server import PostgresServer, find_programs


class Replica(PostgresServer):
    """A server that repeats what another one writes."""

    def __init__(self, primary: PostgresServer, folder: Path) -> None:
        self.folder = folder
        self._bin = find_programs()
        self.user = primary.user
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        shutil.chown(folder, self.user)
        source = ["--host=127.0.0.1", f"--port={primary.port}", "--username=tests"]
        self._run("pg_basebackup", *source, "--write-recovery-conf", "--checkpoint=fast")
        with (folder / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\n")
        self.start()


@contextmanager
def own_replica(primary: PostgresServer) -> Iterator[Replica]:
    """Run a replica."""
    folder = tempfile.mkdtemp()
    try:
        replica = Replica(primary, Path(folder))
        try:
            yield replica
        finally:
            replica.stop()
    finally:
        shutil.rmtree(folder)


def router_of_the_documentation() -> Any:
    """Return an instance of the router that the documentation shows."""
    (block,) = (each for each in blocks(TEXT["howto/scaling.md"]) if "class " in each)
    names: dict[str, Any] = {}
    exec(compile(block, "scaling.md", "exec"), names)
    return names["ListsFromReplica"]()


@contextmanager
def known_to_django(replica: Replica) -> Iterator[None]:
    """Let Django know the replica."""
    here = {"HOST": "127.0.0.1", "PORT": replica.port, "USER": "tests", "NAME": "postgres"}
    # Tests do not empty a mirror.
    here |= {"TEST": {**connection.settings_dict["TEST"], "MIRROR": "default"}}
    connections.settings["replica"] = {**connection.settings_dict, **here}
    try:
        yield
    finally:
        del connections["replica"]
        del connections.settings["replica"]


def _on_replica(sql: str) -> Any:
    with connections["replica"].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def wait_until_up_to_date() -> None:
    """Return when the replica has all that the primary had written."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_wal_lsn()::text")
        (position,) = cursor.fetchone()
    replayed = f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"
    wait_until(lambda: bool(_on_replica(replayed)))


@contextmanager
def replica_is_late() -> Iterator[None]:
    """Let the replica stay as it is, as one that lags."""
    wait_until_up_to_date()
    _on_replica("SELECT 1 FROM (SELECT pg_wal_replay_pause()) paused")
    wait_until(lambda: _on_replica("SELECT pg_get_wal_replay_pause_state()") == "paused")
    try:
        yield
    finally:
        _on_replica("SELECT 1 FROM (SELECT pg_wal_replay_resume()) resumed")
