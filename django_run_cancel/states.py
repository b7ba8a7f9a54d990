"""What a run, a request and an item can be, and how a run may move between statuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class RunType(TextChoices):
    """Kinds of run that come with the package; hosts may use others."""

    TASK = "task", _("task")
    WORKFLOW = "workflow", _("workflow")


class RunStatus(TextChoices):
    """Where a run is in its life."""

    CREATED = "created", _("created")
    QUEUED = "queued", _("queued")
    RUNNING = "running", _("running")
    PAUSED = "paused", _("paused")
    COMPLETED = "completed", _("completed")
    FAILED = "failed", _("failed")
    TERMINATED = "terminated", _("terminated")
    TIMED_OUT = "timed_out", _("timed out")
    CANCELLED = "cancelled", _("cancelled")


ACTIVE = frozenset(
    {RunStatus.CREATED, RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED},
)
TERMINAL = frozenset(RunStatus) - ACTIVE

WAITING = frozenset({RunStatus.CREATED, RunStatus.QUEUED})
"""Active, but no code of the run is executing: cancelling it leaves nothing to stop."""

HANDED_BACK = UUID(int=0)
"""The ``execution_id`` of a run that its code has left, for another try or for later.

None says less: no execution has ever held the run.
"""

SOURCES: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.CREATED: frozenset(),
    # From running: a retry. From paused: resumed through the queue.
    RunStatus.QUEUED: frozenset({RunStatus.CREATED, RunStatus.RUNNING, RunStatus.PAUSED}),
    RunStatus.RUNNING: frozenset({RunStatus.CREATED, RunStatus.QUEUED, RunStatus.PAUSED}),
    RunStatus.PAUSED: frozenset({RunStatus.RUNNING}),
    RunStatus.COMPLETED: frozenset({RunStatus.RUNNING}),
    RunStatus.FAILED: ACTIVE,
    RunStatus.TERMINATED: ACTIVE,
    RunStatus.TIMED_OUT: ACTIVE,
    RunStatus.CANCELLED: ACTIVE,
}
"""The statuses that each status may be entered from. Nothing leaves a terminal status."""


class StopState(TextChoices):
    """How the work of a cancelled run ended; blank while the run is not cancelled."""

    STOPPING = "stopping", _("stopping")
    NEVER_STARTED = "never_started", _("never started")
    ACKNOWLEDGED = "acknowledged", _("acknowledged")
    KILLED = "killed", _("killed")
    PRESUMED = "presumed", _("presumed")


STATE_WORDS = {
    StopState.STOPPING: _("cancelled, stopping"),
    StopState.NEVER_STARTED: _("cancelled, never started"),
    StopState.ACKNOWLEDGED: _("cancelled, stopped (acknowledged)"),
    StopState.KILLED: _("cancelled, stopped (killed)"),
    StopState.PRESUMED: _("cancelled, presumed stopped"),
}
"""What to call a cancelled run: never just cancelled, as its work may go on."""


def words_of_stop(stop_state: str) -> Any:
    """Return what to call a cancelled run, for people; an unknown state is its own word."""
    return STATE_WORDS.get(stop_state, stop_state)  # type: ignore[call-overload]


def words_of_status(status: str) -> Any:
    """Return what to call a status, for people; an unknown one is its own word."""
    return dict(RunStatus.choices).get(status, status)


class Source(TextChoices):
    """Where a cancellation was asked for."""

    API = "api", _("API")
    ADMIN = "admin", _("admin")
    COMMAND = "command", _("command")
    PYTHON = "python", _("Python")


class Outcome(TextChoices):
    """What a cancellation did with one run."""

    CANCELLED = "cancelled", _("cancelled")
    ALREADY_CANCELLED = "already_cancelled", _("already cancelled")
    ALREADY_FINISHED = "already_finished", _("already finished")
    NOT_FOUND = "not_found", _("not found")


SUCCESSFUL = frozenset({Outcome.CANCELLED, Outcome.ALREADY_CANCELLED})
"""Outcomes that are answered as ``cancelled``; the others are answered as ``failed``."""


class Via(TextChoices):
    """Why a run is part of a cancellation."""

    REQUESTED = "requested", _("requested")
    CASCADE = "cascade", _("cascade")


class Delivery(TextChoices):
    """Whether the executor of a cancelled run has been told."""

    NOT_NEEDED = "not_needed", _("not needed")
    PENDING = "pending", _("pending")
    DELIVERED = "delivered", _("delivered")
    FAILED = "failed", _("failed")


class CancellationState(TextChoices):
    """How far a cancellation is. A request for few runs is completed when it is answered."""

    PENDING = "pending", _("pending")
    RUNNING = "running", _("running")
    COMPLETED = "completed", _("completed")
    ABORTED = "aborted", _("aborted")
    FAILED = "failed", _("failed")


UNSETTLED = frozenset({CancellationState.PENDING, CancellationState.RUNNING})
"""States of cancellations that delivery workers still advance."""


class ChunkKind(TextChoices):
    """What is to be done with the runs of a chunk."""

    REQUESTED = "requested", _("cancel them, as asked for")
    CASCADE = "cascade", _("cancel them, as they are below a cancelled run")
    CHILDREN = "children", _("find the runs below them")


class ChunkState(TextChoices):
    """Whether the runs of a chunk have been dealt with."""

    PENDING = "pending", _("pending")
    COMPLETED = "completed", _("completed")
    ABORTED = "aborted", _("aborted")
    FAILED = "failed", _("failed")
