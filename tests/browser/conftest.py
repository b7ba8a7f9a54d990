from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.admin.helpers import logged_in
from tests.browser.helpers import require_chromium

Visit = Callable[..., Page]

TIMEOUT = 120_000  # milliseconds; much longer than any page takes, for machines under load


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser, for one module: its event loop would disturb tests of other ones."""
    path = require_chromium()
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # That event loop makes Django think that tests are asynchronous code. They are not.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        running = playwright.chromium.launch(executable_path=path)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Browser, live_server: Any) -> Iterator[Visit]:
    """Open a window for a member of the staff, whose name and permissions are given.

    At the end, whatever it was for: no request has left the host, and the console has no errors.
    """
    contexts: list[Any] = []
    strangers: list[str] = []
    errors: list[str] = []

    def note_request(request: Request) -> None:
        if not request.url.startswith((f"{live_server.url}/", "data:", "blob:")):
            strangers.append(request.url)

    def note_message(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.location["url"].endswith("/favicon.ico"):
            errors.append(f"{message.text} ({message.location['url']})")

    def open_window(name: str, *codenames: str, is_superuser: bool = False, **options: Any) -> Page:
        client = logged_in(name, *codenames, is_superuser=is_superuser)
        context = browser.new_context(base_url=live_server.url, **options)
        contexts.append(context)
        context.set_default_timeout(TIMEOUT)
        context.on("request", note_request)
        context.on("console", note_message)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        session = client.cookies[settings.SESSION_COOKIE_NAME].value
        context.add_cookies(
            [{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}]
        )
        return context.new_page()

    yield open_window
    for context in contexts:
        context.close()
    assert strangers == []
    assert errors == []


@pytest.fixture
def chief(visit: Visit) -> Page:
    """Return a window of a superuser."""
    return visit("chief", is_superuser=True)
