"""The connection that a thread has: whether a transaction is open on it, and its way to a pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections


def in_transaction(using: str) -> bool:
    """Tell whether this thread is in a transaction of its caller, which can undo what is written.

    Args:
        using: Alias of the database.

    Returns:
        Whether it is, with ``transaction.atomic()`` or without.
    """
    connection = connections[using]
    return connection.in_atomic_block or may_hide_writes(connection)


def may_hide_writes(connection: Any) -> bool:
    """Tell whether others may not see yet what has been written on a connection.

    Args:
        connection: The connection, as Django wraps it; it may be that of another thread.

    Returns:
        Whether a transaction is open on it. It is until the database has committed.
    """
    # Django leaves the atomic block before it commits, and sets this after that.
    is_open = connection.connection is not None and not connection.autocommit
    return is_open and not connection.closed_in_transaction


@contextmanager
def given_back_to_pool(using: str) -> Iterator[None]:
    """Give back to a pool, after a few statements, the connection that they have taken from it.

    A pool may have fewer connections than there are threads with tasks, most of which need none
    between their start and their end. A connection that the thread had before is left to it.

    Args:
        using: Alias of the database.
    """
    connection = connections[using]
    is_taken = connection.connection is None and bool(
        connection.settings_dict.get("OPTIONS", {}).get("pool")
    )
    try:
        yield
    finally:
        if is_taken and not in_transaction(using):
            connection.close()
