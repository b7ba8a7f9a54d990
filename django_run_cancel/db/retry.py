"""Retries: of writes while the database is away, and of transactions that a deadlock has undone."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from django.db import Error, InterfaceError, InternalError, OperationalError, connections

from django_run_cancel.db.sessions import in_transaction
from django_run_cancel.safe_text import describe_error, printable_lines

BRIEF_DELAYS = (0.1, 0.5, 1.0, 3.0)
"""Seconds between attempts to write while the database is away, where somebody waits."""

RETRY_DELAYS = (*BRIEF_DELAYS, 5.0, *[10.0] * 11)
"""The same where a run starts or ends: about two minutes in all."""

START_DELAYS = (*RETRY_DELAYS, *[10.0] * 48)
"""The same before a task of a host starts, which may not need the database: about ten minutes."""

OUTAGES = (OperationalError, InterfaceError, InternalError)
"""What a database that is away raises; the last of them, if it is read-only."""

MAX_SLEEP = 0.5
"""Seconds. Executors that raise a time limit in a thread are not heard while that sleeps."""

MAX_TRIES = 5
"""Of a transaction that the database undoes to end a deadlock."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Patience:
    """With one thing that is repeated while the database is away."""

    def __init__(self, using: str, delays: Sequence[float] | None = None) -> None:
        """Begin to wait.

        Args:
            using: Alias of the database.
            delays: Seconds between attempts; by default ``RETRY_DELAYS``.
        """
        self._using = using
        self._delays = tuple(RETRY_DELAYS if delays is None else delays)
        self._failed = 0
        self._until = 0.0

    def pause_after(self, error: Exception) -> float:
        """Return how many seconds to pause before the next attempt.

        To be called in the thread of the connection, which is closed.

        Args:
            error: What the attempt has raised.

        Raises:
            Exception: This error: there are no further attempts. Inside a transaction there never
                are, as all of it would have to be repeated.
        """
        if in_transaction(self._using):
            raise error
        connections[self._using].close()
        self._failed += 1
        if self._failed == 1:
            self._until = time.monotonic() + sum(self._delays)
        if self._failed > len(self._delays) or self._has_taken_too_long():
            raise error
        if self._failed == 1:
            logger.warning(
                "The database is away. What is to be written is tried again for %.0f seconds: %s",
                sum(self._delays),
                printable_lines(describe_error(error, 1_000)),
            )
        return self._delays[self._failed - 1]

    def _has_taken_too_long(self) -> bool:
        # Each attempt can take long itself, with a server that does not answer.
        is_brief = self._failed <= len(BRIEF_DELAYS)
        return not is_brief and time.monotonic() > self._until


def retry_on_outage(
    action: Callable[..., Result],
    *args: Any,
    using: str,
    delays: Sequence[float] | None = None,
) -> Result:
    """Call a function that asks the database, again if that is away or read-only for a while.

    Args:
        action: What to call. It may be called more than once.
        args: Its arguments.
        using: Alias of the database. Inside a transaction on it nothing can be repeated.
        delays: Seconds between attempts; by default ``RETRY_DELAYS``.

    Returns:
        What the function returns.
    """
    patience = Patience(using, delays)
    while True:
        try:
            return action(*args)
        except OUTAGES as error:
            delay = patience.pause_after(error)
        _sleep(delay)


def _sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, MAX_SLEEP))


def log_if_another_error_is_raised(
    action: Callable[..., None],
    *args: Any,
    using: str,
    is_only_logged: Callable[[], bool],
    delays: Sequence[float] | None = None,
) -> None:
    """Call a function that writes; if it fails, log that rather than hide an earlier error.

    Args:
        action: What to call, as for ``retry_on_outage``.
        args: Its arguments.
        using: Alias of the database.
        is_only_logged: Asked if it has failed: whether there is an earlier error, or result.
        delays: As for ``retry_on_outage``.
    """
    try:
        retry_on_outage(action, *args, using=using, delays=delays)
    except Error:
        if not is_only_logged():
            raise
        log_lost_end()
    except BaseException:  # of a signal, such as that of a time limit, while it waited
        with suppress(Exception):
            retry_on_outage(action, *args, using=using, delays=BRIEF_DELAYS)
        raise


def log_lost_end() -> None:
    """Log, with the error that is being handled, that the end of a run is not in the database."""
    logger.exception("The end of a run could not be recorded.")


class StartOver(Exception):
    """Raised in a transaction that must begin again: what it has seen is out of date."""


def retry_transaction(transact: Callable[[bool], Result], using: str) -> Result:
    """Run a transaction, again when it must start over or the database gave it up.

    Our own order of locks cannot deadlock; that of a host's code can. Inside a transaction of the
    caller's there is nothing to repeat: the database has undone all of it.

    Args:
        transact: The transaction; it is told whether it may raise ``StartOver``.
        using: Alias of the database.

    Returns:
        What the transaction returns.
    """
    ours = not connections[using].in_atomic_block
    for attempt in range(1, MAX_TRIES):
        try:
            return transact(ours)
        except StartOver:
            pass
        except OperationalError as error:
            if not (ours and _is_deadlock(error)):
                raise
        # Only spreads retries.
        time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  # nosec B311
    return transact(False)


def _is_deadlock(error: OperationalError) -> bool:
    """Tell whether the database chose this transaction to end a deadlock or a stale snapshot."""
    driver_error = error.__cause__
    sqlstate = getattr(driver_error, "sqlstate", None) or getattr(driver_error, "pgcode", None)
    # MySQL and MariaDB: ER_LOCK_DEADLOCK, and ER_CHECKREAD under innodb_snapshot_isolation.
    return sqlstate in {"40P01", "40001"} or error.args[:1] in {(1213,), (1020,)}
