"""Real servers in processes of their own, and a socket without manners to talk to them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from django.core.servers.basehttp import ThreadedWSGIServer
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.test.testcases import QuietWSGIRequestHandler

from tests.api.helpers import CONTRACT
from tests.helpers import IS_SQLITE

BIND = ["--bind", "127.0.0.1:{port}"]
SERVERS = {
    "gunicorn": ["gunicorn", *BIND, "-k", "gthread", "--threads=4", "tests.api.served:wsgi"],
    "uvicorn": ["uvicorn", "--port={port}", "--log-level=warning", "tests.api.served:asgi"],
}


def database_url() -> str:
    """Return the URL of the test database, as it is now."""
    settings = connection.settings_dict
    if IS_SQLITE:
        return f"sqlite:///{settings['NAME']}"
    scheme = "postgres" if connection.vendor == "postgresql" else "mysql"
    names = [settings[name] for name in ("USER", "PASSWORD") if settings[name]]
    login = ":".join(quote(name, safe="") for name in names)
    return f"{scheme}://{login}@{settings['HOST']}:{settings['PORT']}/{settings['NAME']}"


@contextlib.contextmanager
def running(name: str) -> Iterator[int]:
    """Run a server and yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    arguments = [argument.format(port=port) for argument in SERVERS[name]]
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "DATABASE_URL": database_url()},
        cwd=CONTRACT.parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(120)


@contextlib.contextmanager
def runserver() -> Iterator[int]:
    """Run the server behind ``runserver`` in a thread, where changed settings are seen."""
    server = ThreadedWSGIServer(("127.0.0.1", 0), QuietWSGIRequestHandler)
    server.set_app(get_wsgi_application())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wait_for(port: int) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            return


class Answer(NamedTuple):
    """What came back. ``body`` is None when the connection was lost before its end."""

    status: int
    headers: dict[str, str]
    body: bytes | None


class Connection:
    """Sends bytes as they are, and all of them before it looks for an answer."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request; ``headers`` are spelt with underscores."""
        if "Transfer_Encoding" not in headers:
            headers.setdefault("Content_Length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return self.receive(method)

    def receive(self, method: str = "GET") -> Answer:
        line = self.file.readline()
        if not line:
            raise ConnectionResetError("the server has closed the connection")
        status = int(line.split()[1])
        headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0)) if method != "HEAD" else 0
        body = self.file.read(length)
        return Answer(status, headers, body if len(body) == length else None)

    def is_closed(self) -> bool:
        """Tell whether the server closes the connection, properly."""
        return self.file.read(1) == b""


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def json_headers(key: str, **headers: Any) -> dict[str, str]:
    return {"x_api_key": key, "Content_Type": "application/json", **headers}
