"""Whether the execution that owns a running run is alive: for messages that are delivered again.

A queue delivers a message again because its worker has died, or although it works. The heartbeat
tells: it advances while the worker lives, and is not renewed by a dead one.
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
    """What is known of the execution that owns a run."""

    ALIVE = "alive"
    """It has written a heartbeat since the last look, or another execution has started."""

    SILENT = "silent"
    """It has written none since, and is not dead by now."""

    DEAD = "dead"
    """Its last heartbeat is too old."""

    NOT_RUNNING = "not running"
    """The run has ended, waits for another try, or does not exist."""


class Owner(NamedTuple):
    """The execution that owns a run, as one look has found it.

    Attributes:
        liveness: What is known of it.
        execution_id: Its id; None for a run that was marked running without an execution.
        heartbeat_at: When it has last written a heartbeat.
        dead_in: After how many seconds it is dead, if it writes no other.
    """

    liveness: Liveness
    execution_id: UUID | None = None
    heartbeat_at: datetime | None = None
    dead_in: float = 0.0


def seconds_until_dead() -> float:
    """Return after how many seconds without a heartbeat an execution is taken for dead."""
    if settings.TAKE_OVER_SECONDS is not None:
        return settings.TAKE_OVER_SECONDS
    return HEARTBEATS_UNTIL_DEAD * settings.HEARTBEAT_SECONDS


def look_at_owner(run_id: str, before: Owner | None = None) -> Owner:
    """Tell whether the execution that owns a run is alive, by the clock of the database.

    One statement; it waits for nothing. For executors that deliver the message once more later,
    rather than wait.

    Args:
        run_id: Public id of the run.
        before: What an earlier look has returned. Without one, nothing can be told alive.

    Returns:
        The owner. ``SILENT`` asks for another look, before ``dead_in`` seconds have passed.
    """
    rows = run_rows(run_id=run_id).values_list(
        "status", "execution_id", "heartbeat_at", DatabaseNow()
    )
    with given_back_to_pool(rows.db):
        status, execution_id, heartbeat_at, now = rows.first() or [None] * 4
    if status != RunStatus.RUNNING:
        return Owner(Liveness.NOT_RUNNING)
    if before is not None and (execution_id, heartbeat_at) != before[1:3]:
        return Owner(Liveness.ALIVE, execution_id, heartbeat_at)
    silence = now - heartbeat_at if heartbeat_at is not None else timedelta.max
    dead_in = seconds_until_dead() - silence.total_seconds()
    liveness = Liveness.SILENT if dead_in >= 0 else Liveness.DEAD
    return Owner(liveness, execution_id, heartbeat_at, max(dead_in, 0.0))


def wait_for_owner(run_id: str, delays: Sequence[float] | None = None) -> Liveness:
    """Wait until it is known whether the execution that owns a run is alive.

    That takes a heartbeat if it is, and as long as ``seconds_until_dead()`` if it is not.

    Args:
        run_id: Public id of the run.
        delays: How often to ask a database that is away, as for ``retry_on_outage``.

    Returns:
        ``ALIVE``, ``DEAD`` or ``NOT_RUNNING``.
    """
    using = run_rows().db
    first = owner = retry_on_outage(look_at_owner, run_id, using=using, delays=delays)
    while owner.liveness is Liveness.SILENT:
        time.sleep(_pause(owner))
        owner = retry_on_outage(look_at_owner, run_id, first, using=using, delays=delays)
    return owner.liveness


async def await_for_owner(run_id: str, delays: Sequence[float] | None = None) -> Liveness:
    """Do what ``wait_for_owner()`` does, in a coroutine."""

    async def look(before: Owner | None = None) -> Owner:
        attempt = partial(in_orm_thread, look_at_owner, run_id, before)
        return await retry_in_orm_thread(attempt, Patience(run_rows().db, delays))

    first = owner = await look()
    while owner.liveness is Liveness.SILENT:
        await asyncio.sleep(_pause(owner))
        owner = await look(first)
    return owner.liveness


def _pause(owner: Owner) -> float:
    return min(owner.dead_in + 0.001, settings.POLL_SECONDS, settings.HEARTBEAT_SECONDS)
