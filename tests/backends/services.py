"""What the tests of the backends need besides Python, and a broker that goes away when told to."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

URLS = {
    "Redis": os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/4"),
    "RabbitMQ": os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//"),
}

USED: set[str] = set()
MISSING: set[str] = set()


def require_package(name: str) -> None:
    """Skip the module, loudly, unless a package is installed."""
    if find_spec(name) is None:
        miss(f"the package {name}")


def require_service(name: str) -> str:
    """Return the URL of a service; skip the test, loudly, unless it answers."""
    try:
        socket.create_connection(address(URLS[name]), timeout=2).close()
    except OSError:
        miss(name)
    USED.add(name)
    return URLS[name]


def miss(what: str) -> NoReturn:
    """Skip the test, or the module, and have it said; where all must be there, fail."""
    MISSING.add(what)
    if os.environ.get("RUN_CANCEL_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{what} is missing", pytrace=False)
    pytest.skip(f"{what} is missing", allow_module_level=True)


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


class Proxy:
    """A port in front of a broker. Down it is ``refused``, or ``silent`` as a frozen host is."""

    def __init__(self, url: str) -> None:
        self._target = address(url)
        self._flows = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._port = 0
        self.up()
        self.url = urlsplit(url)._replace(netloc=self._netloc(url)).geturl()

    def _netloc(self, url: str) -> str:
        login, at, _ = urlsplit(url).netloc.rpartition("@")
        return f"{login}{at}127.0.0.1:{self._port}"

    def up(self) -> None:
        """Forward again, connections that were frozen included."""
        self._flows.set()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def down(self, how: str) -> None:
        """Refuse connections and drop those there are, or say nothing any more on any."""
        if how == "silent":
            self._flows.clear()
        else:
            self.close()

    def close(self) -> None:
        if self._listener is not None:
            # Wakes accept(), which close() alone does not.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        while self._sockets:
            with contextlib.suppress(OSError):
                self._sockets.pop().shutdown(socket.SHUT_RDWR)
        self._flows.set()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            self._sockets += [client, server]
            back = threading.Thread(target=self._pump, args=[server, client], daemon=True)
            back.start()
            self._pump(client, server)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(url: str) -> Iterator[Proxy]:
    """Yield a proxy in front of a broker."""
    found = Proxy(url)
    try:
        yield found
    finally:
        found.close()
