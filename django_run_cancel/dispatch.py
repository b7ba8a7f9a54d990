"""Handing runs to their executors: the id is saved before, and what failed is done again."""

from __future__ import annotations

import logging
import random
from collections import Counter
from datetime import datetime, timedelta
from functools import partial

from django.db import router, transaction
from django.db.models import QuerySet
from django.utils import timezone

from django_run_cancel.backends import get_backend
from django_run_cancel.models import AbstractRun, get_run_model
from django_run_cancel.states import WAITING, RunStatus

logger = logging.getLogger("django_run_cancel")

LEASE = timedelta(seconds=10)
"""How long a dispatch may take; one that was not recorded by then is done again."""

MAX_FAILURES = 3
"""Of one backend in one pass. After these it counts as away, and costs no more timeouts."""


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
    failures: Counter[str] = Counter()
    sent = 0
    for run in list(runs.filter(dispatch_due_at__lte=now).order_by("dispatch_due_at")[:limit]):
        claim = _still_due(run)
        if run.status not in WAITING:
            claim.update(dispatch_due_at=None)  # it got there, or is not wanted any more
        elif failures[run.backend] >= MAX_FAILURES:
            claim.update(dispatch_due_at=_later(run))
        else:
            due = timezone.now() + LEASE
            if claim.update(dispatch_due_at=due):
                run.dispatch_due_at = due
                if _send(run):
                    sent += 1
                else:
                    failures[run.backend] += 1
    return sent


def _send(run: AbstractRun) -> bool:
    try:
        get_backend(run.backend).dispatch(run)
    except Exception as error:  # noqa: BLE001 - of whatever executor
        logger.warning("Run %s could not be dispatched: %r", run.run_id, error)
        _still_due(run).update(dispatch_due_at=_later(run))
        return False
    # Not if the job has been so quick as to dispatch its run anew.
    same = run._rows().filter(external_id=run.external_id)
    same.update(dispatched_at=timezone.now(), dispatch_due_at=None)
    return True


def _still_due(run: AbstractRun) -> QuerySet[AbstractRun]:
    return run._rows().filter(dispatch_due_at=run.dispatch_due_at)


def _later(run: AbstractRun) -> datetime:
    """Return when to try again: the longer it has waited, the longer; at most five minutes."""
    now = timezone.now()
    waited = (now - (run.queued_at or now)).total_seconds()
    return now + timedelta(seconds=min(max(waited, 2), 300) * random.uniform(0.5, 1))  # noqa: S311
