"""Handing runs to their executors: the id is saved before, and what failed is done again."""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import router, transaction
from django.utils import timezone

from django_run_cancel import sql
from django_run_cancel.backends import get_backend
from django_run_cancel.models import AbstractRun, get_run_model
from django_run_cancel.outbox import described
from django_run_cancel.states import WAITING, RunStatus

logger = logging.getLogger("django_run_cancel")

LEASE = timedelta(seconds=30)
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


def dispatch(run: AbstractRun, backend: str) -> None:
    """Queue a run and hand it to an executor once the transaction has committed.

    A run that could not be handed over stays queued, and the delivery worker hands it over again.

    Args:
        run: A run that is ``created``, ``paused``, or ``running`` and to be tried again.
        backend: Alias of the backend.

    Raises:
        UnknownBackend: ``RUN_CANCEL_BACKENDS`` has no such alias.
        TransitionNotAllowed: The run has another status by now; a cancelled run stays cancelled.
    """
    run._enter(
        RunStatus.QUEUED,
        backend=backend,
        external_id=get_backend(backend).new_external_id(run),
        dispatch_due_at=timezone.now() + LEASE,
    )
    transaction.on_commit(partial(_send, run), using=run._rows().db, robust=True)


def redispatch(limit: int = 100) -> int:
    """Hand over runs again whose dispatch has failed, or was cut short.

    Args:
        limit: How many to look at.

    Returns:
        How many were handed over.
    """
    now = timezone.now()
    model = get_run_model()
    runs = model._base_manager.using(router.db_for_write(model))
    wasted: dict[str, float] = defaultdict(float)
    sent = 0
    until = time.monotonic() + STEP_SECONDS
    for run in list(runs.filter(dispatch_due_at__lte=now).order_by("dispatch_due_at")[:limit]):
        if time.monotonic() > until:
            break
        with sql.leaving_out(run.run_id):
            if run.status not in WAITING:
                _put_off(run, None)  # it got there, or is not wanted any more
            elif wasted[run.backend] > PATIENCE:
                _put_off(run, _later(run))
            elif _put_off(run, timezone.now() + LEASE, status__in=WAITING):
                began = time.monotonic()
                if _send(run):
                    sent += 1
                else:
                    wasted[run.backend] += time.monotonic() - began
    return sent


def _send(run: AbstractRun) -> bool:
    try:
        get_backend(run.backend).dispatch(run)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of whatever executor
        # It is tried for ever. What people must look at is said more loudly.
        log = logger.error if _waited(run) > LONGEST_WAIT else logger.warning
        log("Run %s could not be dispatched: %s", run.run_id, described(error))
        _put_off(run, _later(run))
        return False
    # Not if the job has been so quick as to dispatch its run anew.
    same = run._rows().filter(external_id=run.external_id)
    values = {"dispatched_at": timezone.now(), "dispatch_due_at": None}
    for pause in PAUSES:
        time.sleep(pause)
        if sql.update_unlocked(same, **values) or not same.exists():
            break
    return True


def _put_off(run: AbstractRun, due: datetime | None, **lookups: Any) -> bool:
    """Set when to hand over the run again, unless somebody else has dealt with it or does."""
    before, run.dispatch_due_at = run.dispatch_due_at, due
    same = run._rows().filter(dispatch_due_at=before, **lookups)
    return bool(sql.update_unlocked(same, dispatch_due_at=due))


def _waited(run: AbstractRun) -> float:
    return (timezone.now() - run.queued_at).total_seconds() if run.queued_at else 0.0


def _later(run: AbstractRun) -> datetime:
    """Return when to try again: the longer it has waited, the longer; at most five minutes."""
    seconds = min(max(_waited(run), 2), LONGEST_WAIT) * random.uniform(0.5, 1)  # noqa: S311
    return timezone.now() + timedelta(seconds=seconds)
