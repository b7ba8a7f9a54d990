from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.core.management.commands import flush
from django.db import connection
from django.utils import translation

from django_run_cancel.backends import get_backend
from django_run_cancel.cancellation import chunks
from django_run_cancel.cancellation.chunks import Pace
from django_run_cancel.models import ApiKey
from django_run_cancel.testing import DummyBackend
from tests.helpers import ApiClient
from tests.services import IS_MISSING

DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}

FOLDERS_OF_MARKERS = {"broker": "backends/brokers", "browser": "browser"}
"""Folders whose tests all need a server or program that ``make test`` does without."""

# Its modules cannot be imported without that package, not even to be deselected.
collect_ignore = [] if find_spec("playwright") else ["browser"]

PERMISSIONS = {"auth_permission", "django_content_type"}


def pytest_configure() -> None:
    # A shell without job control has what it starts in the background ignore Ctrl+C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, folder in FOLDERS_OF_MARKERS.items():
            if item.path.is_relative_to(Path(__file__).parent / folder):
                item.add_marker(marker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let processes send logs with lone surrogates, which some tests cause, to each other."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was tested and what was not, so that nothing is left out silently."""
    stats = terminalreporter.stats
    passed = {name for report in stats.get("passed", []) for name in report.keywords}
    missing = {
        report.longrepr[2].removeprefix("Skipped: ").removesuffix(IS_MISSING)
        for report in stats.get("skipped", [])
        if report.longrepr[2].endswith(IS_MISSING)
    }
    name = DATABASES[connection.vendor]
    ran = [name, *(f"tests marked {marker}" for marker in FOLDERS_OF_MARKERS if marker in passed)]
    left_out = [other for other in DATABASES.values() if other != name]
    left_out += [f"tests marked {each}" for each in FOLDERS_OF_MARKERS if each not in passed]
    terminalreporter.write_sep("=", "what was tested")
    terminalreporter.write_line(f"Tested: {', '.join(ran)}.")
    terminalreporter.write_line(
        f"Not tested: {', '.join(left_out)}."
        " (DATABASE_URL names another database; make test-all runs all tests; .ci/run everything.)"
    )
    for what in sorted(missing):
        terminalreporter.write_line(f"SKIPPED, AND NOT TESTED: tests that need {what}.", red=True)


@pytest.fixture(scope="session", autouse=True)
def _quick_flush() -> Iterator[None]:
    """Empty the tables between tests as quickly as that can be done: it happens often.

    With DELETE, as TRUNCATE makes new files. And permissions stay, which Django would delete and
    create anew.
    """

    def sql_flush(style: Any, connection: Any, **options: Any) -> list[str]:
        names = connection.introspection.django_table_names(only_existing=True, include_views=False)
        tables = [name for name in names if name not in PERMISSIONS]
        delete = [f"DELETE FROM {connection.ops.quote_name(table)}" for table in tables]
        if connection.vendor != "mysql":
            return delete
        return ["SET foreign_key_checks = 0", *delete, "SET foreign_key_checks = 1"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "sql_flush", sql_flush)
        patch.setattr(flush, "emit_post_migrate_signal", lambda *args: None)
        yield


@pytest.fixture(autouse=True)
def _leave_nothing() -> Iterator[None]:
    yield
    cache.clear()
    translation.deactivate()  # what a request through LocaleMiddleware has activated
    chunks._pace = Pace()


@pytest.fixture
def secret(db: None) -> str:
    """Return a key for runs without a tenant."""
    return ApiKey.issue("tests")[1]


@pytest.fixture
def api(secret: str) -> ApiClient:
    return ApiClient(secret)


@pytest.fixture
def dummy(transactional_db: None) -> Iterator[DummyBackend]:
    backend = get_backend("dummy")
    assert isinstance(backend, DummyBackend)
    backend.clear()
    yield backend
    backend.clear()  # for tests that deliver without this fixture


@pytest.fixture
def watched(settings: Any) -> Iterator[None]:
    """Look often whether runs are cancelled, and leave nothing behind that looks."""
    settings.RUN_CANCEL_POLL_SECONDS = 0.02
    yield
    for thread in threading.enumerate():
        if thread.name == "run_cancel":
            thread.join(120)
            assert not thread.is_alive(), "An execution was entered and not left."


@pytest.fixture
def fixed_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each transaction cancel a hundred runs, however fast the machine is."""

    class Fixed(Pace):
        def adapt(self, count: int, seconds: float) -> None:
            pass

    monkeypatch.setattr(chunks, "_pace", Fixed())
