"""What several modules of tests of ``cancel_runs`` need."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from django_run_cancel.models import CancellationItem

RECORD = "Cancellation: can_…\n"
"""The line that names the record, as ``hide_id`` leaves it."""

WORKERS = "the delivery workers (manage.py deliver_cancellations)"

CANCELLING = "INSERT INTO " + connection.ops.quote_name(CancellationItem._meta.db_table)
"""One statement for each hundred runs: see the fixture ``fixed_pace``."""


def hide_id(text: str) -> str:
    """Return what a command printed without the id of the record."""
    return re.sub(r"\bcan_[0-9a-f]{32}\b", "can_…", text)


def run(*args: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("cancel_runs", *args, stdout=out, **options)
    return out.getvalue() if "--json" in args else hide_id(out.getvalue())


def failing(*args: str, **options: Any) -> tuple[int, str, str]:
    """Return the exit status, what was printed, and the message of a call that fails."""
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("cancel_runs", *args, stdout=out, **options)
    shown = out.getvalue() if "--json" in args else hide_id(out.getvalue())
    return caught.value.returncode, shown, hide_id(str(caught.value))


@contextlib.contextmanager
def before_each(statement: str, action: Callable[[int], Any]) -> Iterator[None]:
    """Call a function with a number before each statement that contains this."""
    numbers = iter(range(1, 1_000_000))

    def wrap(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if statement in sql:
            action(next(numbers))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrap):
        yield
