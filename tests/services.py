"""Servers and packages that tests need: each is looked for, and its tests are skipped without it.

Where ``RUN_CANCEL_REQUIRE_SERVICES=1`` says that all must be there, its tests fail instead.
"""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from typing import NoReturn

import pytest

from django_run_cancel.testing.conformance.proxy import host_and_port

URLS = {
    "Redis": os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/4"),
    "RabbitMQ": os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//"),
}

IS_MISSING = " is missing"
"""How the reason ends with which a test is skipped; the last lines of a test run repeat it."""


def require_package(name: str) -> None:
    """Skip the module unless a package is installed."""
    if find_spec(name) is None:
        skip_without(f"the package {name}")


def require_service(name: str) -> str:
    """Return the URL of a service; skip the test unless it answers."""
    try:
        socket.create_connection(host_and_port(URLS[name]), timeout=20).close()
    except OSError:
        skip_without(name)
    return URLS[name]


def skip_without(what: str) -> NoReturn:
    """Skip the test or the module; fail where everything must be there."""
    if os.environ.get("RUN_CANCEL_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{what}{IS_MISSING}", pytrace=False)
    pytest.skip(f"{what}{IS_MISSING}", allow_module_level=True)
