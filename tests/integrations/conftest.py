"""Fixtures of the tests of integrations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from django_run_cancel.execution.block import ExecutionBlock


def closing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Close the connections of the thread that a worker uses, as it ends then."""

    def close(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            if threading.current_thread() is not threading.main_thread():
                connections.close_all()

    return close


@pytest.fixture
def threads_leave_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExecutionBlock, "__exit__", closing(ExecutionBlock.__exit__))
    monkeypatch.setattr(ExecutionBlock, "__enter__", closing(ExecutionBlock.__enter__))
