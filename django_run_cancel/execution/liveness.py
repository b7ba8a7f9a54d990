"""Detects, by its heartbeats, whether the execution that owns a running run is still alive.

A queue may redeliver a message although its first worker is still processing it. The second worker
must then find out whether the first is alive before it takes over the run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django_run_cancel.conf import settings
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.retry import Patience, retry_on_outage
from django_run_cancel.db.sessions import given_back_to_pool
from django_run_cancel.execution.shield import in_orm_thread, retry_in_orm_thread
from django_run_cancel.models import run_rows
from django_run_cancel.states import RunStatus

HEARTBEATS_UNTIL_DEAD = 3


class Liveness(Enum):
    """State of the execution that owns a run."""

    ALIVE = "alive"
    """It has written a heartbeat since the previous read, or another execution has started."""

    SILENT = "silent"
    """It has written no heartbeat since the previous read, but the last one is recent."""

    DEAD = "dead"
    """Its last heartbeat is older than ``seconds_until_dead()``."""

    NOT_RUNNING = "not running"
    """The run has ended, is queued or paused, or does not exist."""


class Owner(NamedTuple):
    """The execution that owns a run, as read from the database.

    Attributes:
        liveness: Its state.
        execution_id: Its id; None for a run that was marked running without ``execution()``.
        heartbeat_at: Time of its last heartbeat.
        dead_in: Seconds until it counts as dead, if it writes no further heartbeat.
    """

    liveness: Liveness
    execution_id: UUID | None = None
    heartbeat_at: datetime | None = None
    dead_in: float = 0.0


def seconds_until_dead() -> float:
    """Return the number of seconds without a heartbeat after which an execution counts as dead."""
    if settings.TAKE_OVER_SECONDS is not None:
        return settings.TAKE_OVER_SECONDS
    return HEARTBEATS_UNTIL_DEAD * settings.HEARTBEAT_SECONDS


def read_owner(run_id: str, previous: Owner | None = None) -> Owner:
    """Read the execution that owns a run, and compare its heartbeat with an earlier read.

    One query, which does not block. Times are those of the database.

    Args:
        run_id: Public id of the run.
        previous: Result of an earlier read. Without it, the result is never ``ALIVE``.

    Returns:
        The owner. If it is ``SILENT``, read it again within ``dead_in`` seconds.
    """
    rows = run_rows(run_id=run_id).values_list(
        "status", "execution_id", "heartbeat_at", DatabaseNow()
    )
    with given_back_to_pool(rows.db):
        status, execution_id, heartbeat_at, now = rows.first() or [None] * 4
    if status != RunStatus.RUNNING:
        return Owner(Liveness.NOT_RUNNING)
    if previous is not None and (execution_id, heartbeat_at) != previous[1:3]:
        return Owner(Liveness.ALIVE, execution_id, heartbeat_at)
    silence = now - heartbeat_at if heartbeat_at is not None else timedelta.max
    dead_in = seconds_until_dead() - silence.total_seconds()
    liveness = Liveness.SILENT if dead_in >= 0 else Liveness.DEAD
    return Owner(liveness, execution_id, heartbeat_at, max(dead_in, 0.0))


def wait_for_owner(run_id: str, delays: Sequence[float] | None = None) -> Liveness:
    """Wait until the execution that owns a run has written a heartbeat or counts as dead.

    This takes at most ``seconds_until_dead()``.

    Args:
        run_id: Public id of the run.
        delays: Seconds between attempts during an outage, as for ``retry_on_outage``.

    Returns:
        ``ALIVE``, ``DEAD`` or ``NOT_RUNNING``.
    """
    using = run_rows().db
    first = owner = retry_on_outage(read_owner, run_id, using=using, delays=delays)
    while owner.liveness is Liveness.SILENT:
        time.sleep(_pause(owner))
        owner = retry_on_outage(read_owner, run_id, first, using=using, delays=delays)
    return owner.liveness


async def wait_for_owner_async(run_id: str, delays: Sequence[float] | None = None) -> Liveness:
    """Async version of ``wait_for_owner()``."""

    async def read(previous: Owner | None = None) -> Owner:
        attempt = partial(in_orm_thread, read_owner, run_id, previous)
        return await retry_in_orm_thread(attempt, Patience(run_rows().db, delays))

    first = owner = await read()
    while owner.liveness is Liveness.SILENT:
        await asyncio.sleep(_pause(owner))
        owner = await read(first)
    return owner.liveness


def _pause(owner: Owner) -> float:
    return min(owner.dead_in + 0.001, settings.POLL_SECONDS, settings.HEARTBEAT_SECONDS)
