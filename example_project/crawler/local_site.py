"""A site to be crawled, on this machine. Its catalogue is slow, so that there is time to cancel."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, cast

DRIP_SECONDS = 0.2


class LocalSite(ThreadingHTTPServer):
    """Serves the same pages below any path.

    Attributes:
        slow_pages: How many slow pages the front page links to.
        slow_seconds: How long each of them takes.
        sending: How many pages are being sent at this moment.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, slow_pages: int, slow_seconds: float) -> None:
        # Port 0: the system chooses a free one.
        super().__init__(("127.0.0.1", 0), _Handler)
        self.slow_pages = slow_pages
        self.slow_seconds = slow_seconds
        self.sending = 0
        self._lock = Lock()

    @property
    def url(self) -> str:
        """Its URL, with a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}/"

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a page as being sent."""
        with self._lock:
            self.sending += 1
        try:
            yield
        finally:
            with self._lock:
                self.sending -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of crawlers that have hung up."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site = cast(LocalSite, self.server)
        folder, _, name = self.path.rpartition("/")
        with site.counted():
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.write(f"<title>{html.escape(folder)}/{html.escape(name)}</title>\n")
            if not name:
                pages = ["news", "contact", "opening-hours"]
                pages += [f"catalogue?page={n + 1}" for n in range(site.slow_pages)]
                self.write("".join(f"<a href='{page}'>{page}</a>\n" for page in pages))
            elif name.startswith("catalogue"):
                end = time.monotonic() + site.slow_seconds
                while time.monotonic() < end:
                    self.write("<p>One more thing.</p>\n")
                    time.sleep(DRIP_SECONDS)

    def write(self, text: str) -> None:
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def local_site(slow_pages: int, slow_seconds: float) -> Iterator[LocalSite]:
    """Serve a site in threads of this process.

    Args:
        slow_pages: How many slow pages its front page links to.
        slow_seconds: How long each of them takes.
    """
    with LocalSite(slow_pages, slow_seconds) as site:
        thread = Thread(target=site.serve_forever, name="local site", daemon=True)
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()
