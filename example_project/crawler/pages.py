"""Pages: fetching them, and finding the links in them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from html.parser import HTMLParser
from http.client import HTTPResponse
from typing import Any, cast
from urllib.parse import urldefrag, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener

from config import settings

TIMEOUT_SECONDS = 10


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


# No proxy: it would fetch from hosts that are not checked here, and so would a redirect.
_opener = build_opener(ProxyHandler({}), _NoRedirects)


def open_page(url: str) -> AbstractContextManager[HTTPResponse]:
    """Ask for a page.

    Returns:
        The answer, to be read as it comes and closed.

    Raises:
        ValueError: ``CRAWLER_HOSTS`` does not name the host.
        OSError: The host does not answer, or with an error or a redirect.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or parts.hostname not in settings.CRAWLER_HOSTS:
        raise ValueError(f"{url} is not on a host in CRAWLER_HOSTS.")
    return cast(HTTPResponse, _opener.open(url, timeout=TIMEOUT_SECONDS))


def find_links(url: str, html: str) -> list[str]:
    """Return the URLs that a page links to, in their order.

    Args:
        url: That of the page.
        html: Its text.
    """
    parser = _Links()
    parser.feed(html)
    return [urldefrag(urljoin(url, link)).url for link in parser.links]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attributes if name == "href" and value]
