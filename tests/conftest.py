from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.core.management.commands import flush
from django.db import connection
from django.utils import translation

from django_run_cancel.models import ApiKey
from tests.backends import services
from tests.browser import tools
from tests.helpers import ApiClient

DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}

PERMISSIONS = {"auth_permission", "django_content_type"}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the run was against, so that nothing is skipped silently."""
    name = DATABASES[connection.vendor]
    others = ", ".join(sorted(set(DATABASES.values()) - {name}))
    terminalreporter.write_sep("=", "databases, brokers and browsers")
    brokers = ", ".join(sorted(services.USED)) or "none"
    browsers = ", ".join(sorted(tools.USED)) or "none"
    terminalreporter.write_line(f"Ran against: {name}. Brokers: {brokers}. Browser: {browsers}.")
    terminalreporter.write_line(f"Not in this run: {others} (set DATABASE_URL, or run .ci/run).")
    for what in sorted(services.MISSING):
        terminalreporter.write_line(f"SKIPPED, AND NOT TESTED: what needs {what}.", red=True)


@pytest.fixture(scope="session", autouse=True)
def _quick_flush() -> Iterator[None]:
    """Empty the tables between tests as quickly as that can be done: it happens often.

    On PostgreSQL with DELETE, as TRUNCATE makes new files. And permissions stay, which Django would
    delete and create anew.
    """

    def sql_flush(style: Any, connection: Any, **options: Any) -> list[str]:
        names = connection.introspection.django_table_names(only_existing=True, include_views=False)
        tables = [name for name in names if name not in PERMISSIONS]
        if connection.vendor == "postgresql":
            return [f"DELETE FROM {connection.ops.quote_name(table)}" for table in tables]
        statements: list[str] = connection.ops.sql_flush(style, tables, **options)
        return statements

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "sql_flush", sql_flush)
        patch.setattr(flush, "emit_post_migrate_signal", lambda *args: None)
        yield


@pytest.fixture(autouse=True)
def _leave_nothing() -> Iterator[None]:
    yield
    cache.clear()
    translation.deactivate()  # what a request through LocaleMiddleware has activated


@pytest.fixture
def secret(db: None) -> str:
    """Return a key for runs without a tenant."""
    return ApiKey.issue("tests")[1]


@pytest.fixture
def api(secret: str) -> ApiClient:
    return ApiClient(secret)


@pytest.fixture
def watched(settings: Any) -> Iterator[None]:
    """Look often whether runs are cancelled, and leave nothing behind that looks."""
    settings.RUN_CANCEL_POLL_SECONDS = 0.02
    yield
    for thread in threading.enumerate():
        if thread.name == "run_cancel":
            thread.join(10)
            assert not thread.is_alive(), "An execution was entered and not left."
