"""Enums of runs, cancellations and their items, and the allowed transitions between statuses."""

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
    """Statuses of a run."""

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
"""Active statuses in which no code of the run executes: a cancellation has nothing to stop."""

HANDED_BACK = UUID(int=0)
"""The ``execution_id`` of an active run that its execution has left: requeued or paused.

None means that no execution has ever owned the run.
"""

SOURCES: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.CREATED: frozenset(),
    # running → queued is a retry; paused → queued resumes the run through the queue.
    RunStatus.QUEUED: frozenset({RunStatus.CREATED, RunStatus.RUNNING, RunStatus.PAUSED}),
    RunStatus.RUNNING: frozenset({RunStatus.CREATED, RunStatus.QUEUED, RunStatus.PAUSED}),
    RunStatus.PAUSED: frozenset({RunStatus.RUNNING}),
    RunStatus.COMPLETED: frozenset({RunStatus.RUNNING}),
    RunStatus.FAILED: ACTIVE,
    RunStatus.TERMINATED: ACTIVE,
    RunStatus.TIMED_OUT: ACTIVE,
    RunStatus.CANCELLED: ACTIVE,
}
"""Maps each status to the statuses from which a run may enter it. Terminal statuses are final."""


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
"""Labels of cancelled runs for users. They always say whether the work has stopped."""


def words_of_stop(stop_state: str) -> Any:
    """Return the label of a stop state for users, or the value itself if it is unknown."""
    return STATE_WORDS.get(stop_state, stop_state)  # type: ignore[call-overload]


def words_of_status(status: str) -> Any:
    """Return the label of a status for users, or the value itself if it is unknown."""
    return dict(RunStatus.choices).get(status, status)


class Source(TextChoices):
    """The interface through which a cancellation was requested."""

    API = "api", _("API")
    ADMIN = "admin", _("admin")
    COMMAND = "command", _("command")
    PYTHON = "python", _("Python")


class Outcome(TextChoices):
    """Result of a cancellation for one run."""

    CANCELLED = "cancelled", _("cancelled")
    ALREADY_CANCELLED = "already_cancelled", _("already cancelled")
    ALREADY_FINISHED = "already_finished", _("already finished")
    NOT_FOUND = "not_found", _("not found")


SUCCESSFUL = (Outcome.CANCELLED, Outcome.ALREADY_CANCELLED)
"""Outcomes that responses list as ``cancelled``; they list the others as ``failed``."""


class Via(TextChoices):
    """Why a run is part of a cancellation."""

    REQUESTED = "requested", _("requested")
    CASCADE = "cascade", _("cascade")


class Delivery(TextChoices):
    """State of one delivery: of a stop request to the executor, or of an item to the handlers."""

    NOT_NEEDED = "not_needed", _("not needed")
    PENDING = "pending", _("pending")
    DELIVERED = "delivered", _("delivered")
    FAILED = "failed", _("failed")


class CancellationState(TextChoices):
    """Progress of a cancellation; one that is no bulk cancellation is completed at once."""

    PENDING = "pending", _("pending")
    RUNNING = "running", _("running")
    COMPLETED = "completed", _("completed")
    ABORTED = "aborted", _("aborted")
    FAILED = "failed", _("failed")


UNSETTLED = frozenset({CancellationState.PENDING, CancellationState.RUNNING})
"""States of cancellations that delivery workers still advance."""


class ChunkKind(TextChoices):
    """What the delivery worker does with the runs of a chunk."""

    REQUESTED = "requested", _("cancel them, as asked for")
    CASCADE = "cascade", _("cancel them, as they are below a cancelled run")
    CHILDREN = "children", _("find the runs below them")


class ChunkState(TextChoices):
    """Whether the delivery worker has processed the runs of a chunk."""

    PENDING = "pending", _("pending")
    COMPLETED = "completed", _("completed")
    ABORTED = "aborted", _("aborted")
    FAILED = "failed", _("failed")
