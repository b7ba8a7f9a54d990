"""``dispatch()``: sends the task of a run to an executor; ``redispatch()`` retries failed sends."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction

from django_run_cancel.backends import TaskCall, get_backend
from django_run_cancel.db import locks
from django_run_cancel.db.clock import DatabaseNow, database_now
from django_run_cancel.delivery.outbox import error_text, jitter
from django_run_cancel.delivery.rotation import Rotation
from django_run_cancel.models import AbstractRun, run_rows
from django_run_cancel.safe_text import printable, printable_lines
from django_run_cancel.states import WAITING, RunStatus

logger = logging.getLogger("django_run_cancel")

DISPATCH_DURATION = timedelta(seconds=30)
"""Time until a dispatch that has not been recorded as sent is repeated."""

MAX_FAILURE_SECONDS = 5.0
"""Seconds that failures of one backend may take in one step; then the step skips the backend."""

STEP_SECONDS = 5.0
"""Duration after which a step dispatches no further runs, so that stop requests do not wait."""

RECORD_PAUSES = (0.0, 0.1, 0.2, 0.5)
"""Seconds between attempts to record that a run was sent, if its row is locked.

A fast job locks the row for a moment. If it is locked for longer, the next step finds the run
running.
"""

LONGEST_WAIT = 300.0
"""Maximum seconds between two attempts to dispatch a run."""

_rotation = Rotation("dispatch_due_at")

NULL_CHARACTER = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""The null character in JSON text, which PostgreSQL cannot store."""


def dispatch(
    run: AbstractRun,
    backend: str,
    *,
    task: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Set a run to ``queued``, and send its task to an executor after the commit.

    If that fails, the run stays queued and the delivery worker retries. The arguments are stored
    with the run until the executor has accepted the task.

    Args:
        run: A run that is ``created`` or ``paused``, or a ``running`` one to retry.
        backend: Alias of the backend.
        task: Name of the task; by default the one in the ``OPTIONS`` of the backend.
        args: Positional arguments of the task, after the run id; JSON values.
        kwargs: Keyword arguments of the task; JSON values.
        options: Options of the executor for sending the task, such as ``countdown`` or ``queue``;
            JSON values.

    Raises:
        TypeError: ``run`` is not a run, a value cannot be stored as JSON, or the backend does not
            support this call.
        UnknownTask: The executor has no task with this name.
        UnknownBackend: ``RUN_CANCEL_BACKENDS`` does not have this alias.
        TransitionNotAllowed: The status of the run does not allow it, for example ``cancelled``.
    """
    if not isinstance(run, AbstractRun):
        raise TypeError(
            f"dispatch() takes a run, not {run!r}. "
            "With its id: get_run_model().objects.get(run_id=…)."
        )
    executor = get_backend(backend)
    call = _as_json(TaskCall(task, list(args), dict(kwargs or {}), options))
    executor.check_call(call)
    run._enter(
        RunStatus.QUEUED,
        backend=backend,
        external_id=executor.new_external_id(run),
        dispatch_call=call._asdict() if any(call) else None,
        dispatch_due_at=_now(run) + DISPATCH_DURATION,
    )

    def send() -> None:
        _send(run)

    # Not a partial: to log an error of the function, Django needs its ``__qualname__``.
    transaction.on_commit(send, using=run._rows().db, robust=True)


def redispatch(limit: int = 100) -> int:
    """Retry dispatches that failed, or whose process died before it recorded them.

    Args:
        limit: Maximum number of runs to read.

    Returns:
        Number of runs that were dispatched.
    """
    runs = run_rows(dispatch_due_at__lte=DatabaseNow())
    window = _rotation.window(runs, limit)
    seconds_lost: dict[str, float] = defaultdict(float)
    sent, written = 0, []
    until = time.monotonic() + STEP_SECONDS
    for run in window:
        if time.monotonic() > until:
            break
        if run.status not in WAITING:
            is_written = _reschedule(run, None)  # already started, or ended
        elif seconds_lost[run.backend] > MAX_FAILURE_SECONDS:
            is_written = _reschedule(run, _retry_time(run))
        elif is_written := _reschedule(run, _now(run) + DISPATCH_DURATION, status__in=WAITING):
            began = time.monotonic()
            if _send(run):
                sent += 1
            else:
                seconds_lost[run.backend] += time.monotonic() - began
        if is_written:
            written.append(run.pk)
    _rotation.advance(written)
    return sent


def _as_json(call: TaskCall) -> TaskCall:
    """Return the call as a retry would read it from the database."""
    try:
        text = json.dumps(call._asdict(), allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"The arguments and options of dispatch() must be JSON values: {error}"
        ) from error
    if NULL_CHARACTER.search(text):
        raise TypeError("The arguments and options of dispatch() must not contain NUL characters.")
    return TaskCall(**json.loads(text))


def _send(run: AbstractRun) -> bool:
    try:
        call = TaskCall(**run.dispatch_call) if run.dispatch_call else TaskCall()
        get_backend(run.backend).dispatch(run, call)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of whatever executor
        # There is no maximum of attempts: log an error once the run has waited for long.
        log = logger.error if _seconds_queued(run) > LONGEST_WAIT else logger.warning
        shown = printable_lines(error_text(error))
        log("Run %s could not be dispatched: %s", printable(run.run_id), shown)
        _reschedule(run, _retry_time(run))
        return False
    # Filter by external_id: a fast job may have dispatched its run again already.
    rows = run._rows().filter(external_id=run.external_id)
    values = {"dispatched_at": DatabaseNow(), "dispatch_due_at": None, "dispatch_call": None}
    for pause in RECORD_PAUSES:
        time.sleep(pause)
        if locks.update_unlocked(rows, **values) or not rows.exists():
            break
    return True


def _reschedule(run: AbstractRun, due: datetime | None, **lookups: Any) -> bool:
    """Set the time of the next dispatch, unless another process has changed or locked the row."""
    before, run.dispatch_due_at = run.dispatch_due_at, due
    rows = run._rows().filter(dispatch_due_at=before, **lookups)
    values = {"dispatch_due_at": due} if due else {"dispatch_due_at": None, "dispatch_call": None}
    return bool(locks.update_unlocked(rows, **values))


def _seconds_queued(run: AbstractRun) -> float:
    return (_now(run) - run.queued_at).total_seconds() if run.queued_at else 0.0


def _retry_time(run: AbstractRun) -> datetime:
    """Return the time of the next attempt: the longer the run has waited, the later."""
    wait = timedelta(seconds=min(max(_seconds_queued(run), 2), LONGEST_WAIT))
    return _now(run) + jitter(wait)


def _now(run: AbstractRun) -> datetime:
    return database_now(run._rows().db)
