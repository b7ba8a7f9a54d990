"""State of this thread's database connection: open transactions, and pooled connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections


def in_transaction(using: str) -> bool:
    """Tell whether this thread has a transaction open, with ``transaction.atomic()`` or without.

    Args:
        using: Alias of the database.
    """
    connection = connections[using]
    return connection.in_atomic_block or may_hide_writes(connection)


def may_hide_writes(connection: Any) -> bool:
    """Tell whether a transaction is open on a connection, so that others do not see its writes.

    Args:
        connection: Django's connection wrapper; it may belong to another thread.

    Returns:
        True until the database has committed.
    """
    # ``in_atomic_block`` is reset before the COMMIT, ``autocommit`` after it.
    is_open = connection.connection is not None and not connection.autocommit
    return is_open and not connection.closed_in_transaction


@contextmanager
def given_back_to_pool(using: str) -> Iterator[None]:
    """Return a connection to the pool on leaving, if the statements inside have taken it.

    A pool may have fewer connections than the worker has threads, and most tasks use none between
    their start and end. A connection that the thread already had stays open.

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
