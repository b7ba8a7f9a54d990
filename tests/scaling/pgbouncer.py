"""Starts PgBouncer in transaction mode, and a PostgreSQL server behind it, for one test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import connection, connections

from tests.api.servers import wait_for
from tests.faults.postgres_server import PostgresServer
from tests.services import skip_without

CONFIGURATION = """
[databases]
postgres = host=127.0.0.1 port={server} user=tests

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
"""


@contextmanager
def own_pgbouncer(server: PostgresServer, pool_size: int) -> Iterator[int]:
    """Run PgBouncer and yield its port; skip the test if it is not installed.

    Args:
        server: Where it connects to.
        pool_size: How many connections it has there, for all its clients.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        skip_without("PgBouncer")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pgbouncer.ini"
        text = CONFIGURATION.format(server=server.port, port=port, pool_size=pool_size)
        path.write_text(text, "utf-8")
        for each in (folder, path):
            shutil.chown(each, server.user)
        process = subprocess.Popen(
            [program, "--quiet", path], user=server.user, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(port)
            yield port
        finally:
            process.terminate()
            process.wait()


@contextmanager
def through_port(port: int) -> Iterator[None]:
    """Let the connections of all threads go to a port, with settings that PgBouncer accepts."""
    connections.close_all()
    options = {**connection.settings_dict["OPTIONS"]}
    options.pop("options", None)  # PgBouncer refuses clients that send server settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connection.settings_dict, "PORT", port)
        patch.setitem(connection.settings_dict, "OPTIONS", options)
        patch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
        try:
            yield
        finally:
            connections.close_all()
