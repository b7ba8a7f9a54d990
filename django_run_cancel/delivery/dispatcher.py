"""Dispatch: handing runs to executors. The id is saved first; failed dispatches are repeated."""

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
from django_run_cancel.delivery.outbox import described, spread
from django_run_cancel.delivery.rotation import Rotation
from django_run_cancel.models import AbstractRun, run_rows
from django_run_cancel.safe_text import printable, printable_lines
from django_run_cancel.states import WAITING, RunStatus

logger = logging.getLogger("django_run_cancel")

DISPATCH_DURATION = timedelta(seconds=30)
"""How long a dispatch may take; one that was not recorded by then is done again."""

PATIENCE = 5.0
"""Seconds that failures of one backend may take in one pass. Then it counts as away."""

STEP_SECONDS = 5.0
"""After which no further run is dispatched in one pass: executors must be told meanwhile."""

PAUSES = (0.0, 0.1, 0.2, 0.5)
"""Seconds between attempts to note that a run was sent, while somebody has its row locked. A job
that is quick has it for a moment; one that keeps it is found running when it is due again."""

LONGEST_WAIT = 300.0
"""Seconds between attempts."""

_due = Rotation("dispatch_due_at")

NULL_CHARACTER = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON writes it; PostgreSQL cannot store it."""


def dispatch(
    run: AbstractRun,
    backend: str,
    *,
    task: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Queue a run and hand it to an executor once the transaction has committed.

    A run that could not be handed over stays queued, and the delivery worker hands it over again.
    What the task is given is kept with the run until the executor has it.

    Args:
        run: A run that is ``created``, ``paused``, or ``running`` and to be tried again.
        backend: Alias of the backend.
        task: Name of the task; by default the one in the ``OPTIONS`` of the backend.
        args: What the task gets after the run id. JSON has to be able to hold these.
        kwargs: What the task gets by keyword; of JSON, too.
        options: How to send the task, in words of the executor: ``countdown``, ``queue``, say. Of
            JSON, too.

    Raises:
        TypeError: The first argument is no run, something is not of JSON, or the backend cannot
            send such a call.
        UnknownTask: The executor has no such task.
        UnknownBackend: ``RUN_CANCEL_BACKENDS`` has no such alias.
        TransitionNotAllowed: The run has another status by now; a cancelled run stays cancelled.
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

    # Not a partial: Django fails to log that a function without a name has failed.
    transaction.on_commit(send, using=run._rows().db, robust=True)


def redispatch(limit: int = 100) -> int:
    """Hand over runs again whose dispatch has failed, or was cut short.

    Args:
        limit: How many to look at.

    Returns:
        How many were handed over.
    """
    runs = run_rows(dispatch_due_at__lte=DatabaseNow())
    window = _due.window(runs, limit)
    seconds_lost: dict[str, float] = defaultdict(float)
    sent, written = 0, []
    until = time.monotonic() + STEP_SECONDS
    for run in window:
        if time.monotonic() > until:
            break
        if run.status not in WAITING:
            is_written = _put_off(run, None)  # it got there, or is not wanted any more
        elif seconds_lost[run.backend] > PATIENCE:
            is_written = _put_off(run, _later(run))
        elif is_written := _put_off(run, _now(run) + DISPATCH_DURATION, status__in=WAITING):
            began = time.monotonic()
            if _send(run):
                sent += 1
            else:
                seconds_lost[run.backend] += time.monotonic() - began
        if is_written:
            written.append(run.pk)
    _due.advance(written)
    return sent


def _as_json(call: TaskCall) -> TaskCall:
    """Return the call as it is read from the database when the dispatch is repeated."""
    try:
        text = json.dumps(call._asdict(), allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"dispatch() takes what JSON can hold: {error}") from error
    if NULL_CHARACTER.search(text):
        raise TypeError("dispatch() takes what databases can hold, and no null characters.")
    return TaskCall(**json.loads(text))


def _send(run: AbstractRun) -> bool:
    try:
        call = TaskCall(**run.dispatch_call) if run.dispatch_call else TaskCall()
        get_backend(run.backend).dispatch(run, call)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of whatever executor
        # It is tried for ever. What people must look at is said more loudly.
        log = logger.error if _waited(run) > LONGEST_WAIT else logger.warning
        shown = printable_lines(described(error))
        log("Run %s could not be dispatched: %s", printable(run.run_id), shown)
        _put_off(run, _later(run))
        return False
    # Not if the job has been so quick as to dispatch its run anew.
    same = run._rows().filter(external_id=run.external_id)
    values = {"dispatched_at": DatabaseNow(), "dispatch_due_at": None, "dispatch_call": None}
    for pause in PAUSES:
        time.sleep(pause)
        if locks.update_unlocked(same, **values) or not same.exists():
            break
    return True


def _put_off(run: AbstractRun, due: datetime | None, **lookups: Any) -> bool:
    """Set when to hand over the run again, unless somebody else has dealt with it or does."""
    before, run.dispatch_due_at = run.dispatch_due_at, due
    same = run._rows().filter(dispatch_due_at=before, **lookups)
    values = {"dispatch_due_at": due} if due else {"dispatch_due_at": None, "dispatch_call": None}
    return bool(locks.update_unlocked(same, **values))


def _waited(run: AbstractRun) -> float:
    return (_now(run) - run.queued_at).total_seconds() if run.queued_at else 0.0


def _later(run: AbstractRun) -> datetime:
    """Return when to try again: the longer it has waited, the longer; at most five minutes."""
    wait = timedelta(seconds=min(max(_waited(run), 2), LONGEST_WAIT))
    return _now(run) + spread(wait)


def _now(run: AbstractRun) -> datetime:
    return database_now(run._rows().db)
