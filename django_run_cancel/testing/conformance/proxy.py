"""``Proxy``: forwards connections to a server, and simulates outages of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal, Self
from urllib.parse import urlsplit


def host_and_port(url: str) -> tuple[str, int]:
    """Return the host and the port of a URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


class Proxy:
    """Forwards connections to a server, until ``down()`` interrupts them.

    Args:
        url: URL of the server, with host and port.

    Attributes:
        url: The same URL with the host and port of the proxy.
    """

    def __init__(self, url: str) -> None:
        self._target = host_and_port(url)
        self._flows = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._port = 0
        self.up()
        self.url = urlsplit(url)._replace(netloc=self._netloc(url)).geturl()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _netloc(self, url: str) -> str:
        login, at, _ = urlsplit(url).netloc.rpartition("@")
        return f"{login}{at}127.0.0.1:{self._port}"

    def up(self) -> None:
        """Forward connections again, including those that ``down("silent")`` has frozen."""
        self._flows.set()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def down(self, how: Literal["refused", "silent"]) -> None:
        """Simulate an outage.

        Args:
            how: ``refused`` closes all connections and refuses new ones, like a host without the
                server. ``silent`` forwards no data, like a frozen host.
        """
        if how == "silent":
            self._flows.clear()
        else:
            self.close()

    def close(self) -> None:
        """Close all connections, and refuse new ones."""
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
