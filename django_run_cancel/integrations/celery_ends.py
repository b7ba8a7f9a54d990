"""Ends of Celery tasks: helpers for tasks that are retried, replaced, ignored or cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from billiard import current_process
from celery.canvas import _chain, _chord
from celery.exceptions import Ignore, Reject, Retry
from celery.signals import task_revoked

from django_run_cancel.conf import settings
from django_run_cancel.exceptions import TransitionNotAllowed
from django_run_cancel.execution import Execution
from django_run_cancel.models import run_rows
from django_run_cancel.states import TERMINAL, RunStatus

ENDED_BY_ITSELF = frozenset({RunStatus.COMPLETED, RunStatus.FAILED})


class Replaced(Ignore):  # type: ignore[misc]  # Celery is not typed
    """Raised when another task has replaced this one and continues its run."""


def is_tried_again(error: BaseException) -> bool:
    if isinstance(error, SystemExit):
        # The worker's main process decides whether the task is revoked, lost or redelivered.
        return bool(current_process().daemon)
    is_rejected = isinstance(error, Reject) and error.requeue
    return is_rejected or isinstance(error, (Retry, Replaced))


def result_or_ignore(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function, and return its result, or the ``Ignore`` that it raises.

    ``Ignore`` is no failure for Celery, and so must not leave the block of the run.
    """
    try:
        return function(*args, **kwargs)
    except Replaced:
        raise
    except Ignore as ignored:
        return ignored


def name_of_id(task_id: str, sig: Any) -> str:
    """Return the name of the task with this id in a signature, such as the last link of a chain."""
    if isinstance(sig, _chord):
        return name_of_id(task_id, sig.body)
    if isinstance(sig, _chain):
        links = [link for link in sig.tasks if link.options.get("task_id") == task_id]
        return name_of_id(task_id, (links or sig.tasks[-1:])[0])
    return str(sig.task)


def is_published_again(request: Any, refused: Exception) -> bool:
    """Tell whether the host has published a new task with the id of one that has ended.

    Such a task is executed without a run. False if another process has ended the run before this
    message or retry started.
    """
    is_new = getattr(request, "run_execution", None) is None and not request.retries
    is_redelivered = (request.delivery_info or {}).get("redelivered", False)
    if not (is_new and isinstance(refused, TransitionNotAllowed)) or is_redelivered:
        return False
    executed = run_rows(run_id=request.id, started_at__isnull=False)
    return executed.filter(status__in=ENDED_BY_ITSELF).exists()


def send_again_later(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Publish a message again that was received while another execution owns the run.

    That execution may die, or may be a previous try whose transaction is not committed yet: then no
    other message is left. Messages that are acknowledged early are never redelivered.
    """
    request = task.request
    if request.is_eager or not (task.acks_late or request.retries):
        return
    signature = task.signature_from_request(
        request, args, kwargs, countdown=settings.HEARTBEAT_SECONDS, retries=request.retries
    )
    signature.apply_async()


def was_ended_from_outside(request: Any) -> bool:
    """Tell whether another process has ended the run while this execution owned it.

    Then no other execution stores a result.
    """
    run: Execution | None = getattr(request, "run_execution", None)
    if run is None or run.run.held_as is None:
        return False
    rows = run_rows(run_id=request.id, execution_id=run.run.held_as)
    return bool(rows.filter(status__in=TERMINAL).exists())


def end_as_revoked(task: Any, reason: str) -> None:
    """End a task as after ``revoke(terminate=True)``: result, error of the chord, and signal."""
    request = task.request
    if not request.is_eager:
        is_stored = not task.ignore_result or task.store_errors_even_if_ignored
        task.backend.mark_as_revoked(request.id, reason, request=request, store_result=is_stored)
    task_revoked.send(sender=task, request=request, terminated=True, signum=None, expired=False)
