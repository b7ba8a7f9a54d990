"""Retries queries during an outage of the database, and transactions after a deadlock."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.db import Error, InterfaceError, InternalError, OperationalError, connections

from django_run_cancel.db.sessions import in_transaction
from django_run_cancel.safe_text import describe_error, printable_lines

BRIEF_DELAYS = (0.1, 0.5, 1.0, 3.0)
"""Seconds between attempts during an outage, if a caller is waiting for the result."""

RETRY_DELAYS = (*BRIEF_DELAYS, 5.0, *[10.0] * 11)
"""Seconds between attempts to start or end a run: about two minutes in total."""

START_DELAYS = (*RETRY_DELAYS, *[10.0] * 48)
"""Seconds between attempts to start the run of a host's task: about ten minutes in total."""

OUTAGES = (OperationalError, InterfaceError, InternalError)
"""Errors raised during an outage; InternalError if the database is read-only."""

MAX_SLEEP = 0.5
"""Maximum seconds of one ``time.sleep()``.

Some executors enforce a time limit by raising an exception in the thread, which has no effect
before the call returns.
"""

MAX_TRIES = 8
"""Maximum tries of a transaction, which take up to 2.5 seconds longer than one.

The last one may not start over. If it locks runs that were added meanwhile, it can cause a deadlock
where keys do not ascend, as with UUIDs.
"""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Patience:
    """Counts the attempts of one operation during an outage, and limits them in number and time."""

    def __init__(self, using: str, delays: Sequence[float] | None = None) -> None:
        """Create the counter.

        Args:
            using: Alias of the database.
            delays: Seconds between attempts; by default ``RETRY_DELAYS``.
        """
        self._using = using
        self._delays = tuple(RETRY_DELAYS if delays is None else delays)
        self._failures = 0
        self._deadline = 0.0

    def pause_after(self, error: Exception) -> float:
        """Close the connection, and return the seconds to wait before the next attempt.

        Call it in the thread that uses the connection.

        Args:
            error: The exception that the attempt raised.

        Raises:
            Exception: ``error``, if there are no attempts left, or inside a transaction, which
                would have to be repeated as a whole.
        """
        if in_transaction(self._using):
            raise error
        connections[self._using].close()
        self._failures += 1
        if self._failures == 1:
            self._deadline = time.monotonic() + sum(self._delays)
        if self._failures > len(self._delays) or self._has_taken_too_long():
            raise error
        if self._failures == 1:
            logger.warning(
                "The database is unreachable. The write is tried again for %.0f seconds: %s",
                sum(self._delays),
                printable_lines(describe_error(error, 1_000)),
            )
        return self._delays[self._failures - 1]

    def _has_taken_too_long(self) -> bool:
        # Each attempt may itself block for long, if the server does not respond.
        is_brief = self._failures <= len(BRIEF_DELAYS)
        return not is_brief and time.monotonic() > self._deadline


def retry_on_outage(
    action: Callable[..., Result],
    *args: Any,
    using: str,
    delays: Sequence[float] | None = None,
) -> Result:
    """Call a function that queries the database, and retry it during an outage.

    Args:
        action: The function; it may be called more than once.
        args: Its positional arguments.
        using: Alias of the database. Inside a transaction on it there are no retries.
        delays: Seconds between attempts; by default ``RETRY_DELAYS``.

    Returns:
        The result of the function.
    """
    patience = Patience(using, delays)
    while True:
        try:
            return action(*args)
        except OUTAGES as error:
            delay = patience.pause_after(error)
        _sleep(delay)


def _sleep(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (remaining := deadline - time.monotonic()) > 0:
        time.sleep(min(remaining, MAX_SLEEP))


def log_if_another_error_is_raised(
    action: Callable[..., None],
    *args: Any,
    using: str,
    is_only_logged: Callable[[], bool],
    delays: Sequence[float] | None = None,
) -> None:
    """Call a function that writes, with retries; log its error if that would hide an earlier one.

    Args:
        action: The function, as for ``retry_on_outage``.
        args: Its positional arguments.
        using: Alias of the database.
        is_only_logged: Called after a failure; returns True to log the error, False to raise it.
        delays: As for ``retry_on_outage``.
    """
    try:
        retry_on_outage(action, *args, using=using, delays=delays)
    except Error:
        if not is_only_logged():
            raise
        log_lost_end()


def log_lost_end() -> None:
    """Log that the end of a run could not be written, with the exception being handled."""
    logger.exception("The end of a run could not be recorded.")


class StartOver(Exception):
    """Raised in a transaction that must be repeated, as the data it has read is out of date."""


def retry_transaction(transact: Callable[[bool], Result], using: str) -> Result:
    """Run a transaction; repeat it after ``StartOver`` or a deadlock.

    This package locks rows in one order, but the code of a host may not, and so cause deadlocks.
    Inside a transaction of the caller, or without autocommit, nothing is repeated: a deadlock rolls
    back all of it, and ``StartOver`` could leave the writes of a try in it.

    Args:
        transact: Function that runs the transaction. Its argument ``restartable`` tells whether it
            may raise ``StartOver``.
        using: Alias of the database.

    Returns:
        The result of ``transact``.
    """
    is_outermost = not in_transaction(using)
    for attempt in range(1, MAX_TRIES):
        try:
            return transact(is_outermost)
        except StartOver:
            pass
        except OperationalError as error:
            if not (is_outermost and _is_deadlock(error)):
                raise
        # Only spreads retries.
        time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  # nosec B311
    return transact(False)


def _is_deadlock(error: OperationalError) -> bool:
    """Tell whether the database rolled back because of a deadlock or an outdated snapshot."""
    # MySQL and MariaDB: ER_LOCK_DEADLOCK, and ER_CHECKREAD under innodb_snapshot_isolation.
    return sqlstate_of(error) in {"40P01", "40001"} or error.args[:1] in {(1213,), (1020,)}


def sqlstate_of(error: Error) -> str | None:
    """Return the code of an error of PostgreSQL, from psycopg or psycopg2."""
    driver_error = error.__cause__
    return getattr(driver_error, "sqlstate", None) or getattr(driver_error, "pgcode", None)
