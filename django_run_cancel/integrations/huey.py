"""Huey integration: makes each task a run, by one line for a project or for a task.

For all tasks of a Huey instance, in ``AppConfig.ready()``: ``cancellable(HUEY)``.
For one: ``@cancellable`` above its ``@huey.task()``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar

from django.db import close_old_connections
from huey import exceptions
from huey.api import Huey, PeriodicTask, Task, TaskWrapper
from huey.exceptions import CancelExecution, RetryTask
from huey.signals import SIGNAL_CANCELED, SIGNAL_EXECUTING, SIGNAL_EXPIRED, SIGNAL_REVOKED
from huey.utils import Error

from django_run_cancel.backends.huey import DISPATCHED
from django_run_cancel.cancellation.service import cancel_runs
from django_run_cancel.db.event_loop import orm_is_refused
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import current_run
from django_run_cancel.integrations.tracking import (
    TaskMessage,
    backend_alias,
    executing,
    fail_unpublished,
    is_tracked,
    record_published,
)
from django_run_cancel.models import run_rows
from django_run_cancel.safe_text import printable
from django_run_cancel.states import WAITING, RunStatus

BACKEND = "django_run_cancel.backends.huey.HueyBackend"

RATE_LIMITED: Any = getattr(exceptions, "RateLimitExceeded", ())  # not in older versions

logger = logging.getLogger("django_run_cancel")

Target = TypeVar("Target")


# Publishing a task


def _enqueue(huey: Any, enqueue: Callable[[Any], Any], task: Any) -> Any:
    """Create the runs of a task and of its pipeline, and enqueue the task."""
    # A group or chord is no Task, and calls this function for each member. In immediate mode,
    # ``enqueue()`` executes the task, which creates its run.
    if huey.immediate or not isinstance(task, Task) or not _is_tracked(huey, task):
        return enqueue(task)
    if not _is_recorded(task):
        links = (_message(huey, link) for link in _tracked_links(huey, task))
        record_published(_message(huey, task), *links)
    try:
        return enqueue(task)
    except BaseException as error:
        fail_unpublished(task.id, *_tracked_link_ids(huey, task), error=error)
        raise


def _read_schedule(read_schedule: Callable[..., Any], *args: Any) -> Any:
    """Return the due tasks of the schedule, marked as published."""
    tasks = read_schedule(*args)
    for task in tasks:
        task.run_cancel_recorded = True
    return tasks


def _is_recorded(task: Any) -> bool:
    """Tell whether a task was published before, for example if this is a retry."""
    return getattr(task, "run_cancel_recorded", False)


def _message(huey: Any, task: Any) -> TaskMessage:
    run = None if getattr(task, "run_cancel_detached", False) else current_run()
    alias = "" if huey.immediate else backend_alias(BACKEND)
    parent_id = run.run_id if run is not None else ""
    return TaskMessage(task.id, _name(task), task.args, task.kwargs, alias, parent_id)


def _links(task: Any) -> Iterator[Any]:
    """Yield the following tasks of a pipeline."""
    while (task := task.on_complete) is not None:
        yield task


def _tracked_links(huey: Any, task: Any) -> Iterator[Any]:
    return takewhile(partial(_is_tracked, huey), _links(task))


def _tracked_link_ids(huey: Any, task: Any) -> list[str]:
    return [link.id for link in _tracked_links(huey, task)]


def _name(task: Any) -> str:
    return f"{type(task).__module__}.{type(task).__name__}"


def _is_tracked(huey: Any, task: Any) -> bool:
    if huey.immediate and orm_is_refused():
        return False  # the task is executed at once, in an event loop
    if not isinstance(task.id, str) or task.id.startswith(DISPATCHED):
        return False
    is_cancellable = huey.run_cancel_all or getattr(task, "run_cancel_tracked", False)
    return is_cancellable and is_tracked(_name(task), task.id)


# Executing a task, and its end


def _before_execution(huey: Any, signal: str, task: Any) -> None:
    """Replace ``task.execute()``, which Huey calls next, by the execution of the task's run."""
    if _is_tracked(huey, task):
        task.execute = partial(_execute, huey, task)


def _execute(huey: Any, task: Any) -> Any:
    del task.execute
    # Huey enqueues the same objects for a retry and for the next task of the pipeline.
    task.run_cancel_recorded = True
    if task.on_complete is not None:
        task.on_complete.run_cancel_recorded = True
    with _without_old_connections(huey):
        try:
            return _execute_run(huey, task)
        except BaseException as error:
            if not _is_tried_again(task, error):
                fail_unpublished(*_tracked_link_ids(huey, task), error=error)
            raise


def _execute_run(huey: Any, task: Any) -> Any:
    requeue_on = partial(_is_tried_again, task)
    with ExitStack() as stack:
        try:
            stack.enter_context(executing(_message(huey, task), requeue_on=requeue_on))
        except RunCancelled as refused:
            raise _cancel_execution(refused) from refused
        except (RunInProgress, TransitionNotAllowed):
            # As Huey has no redelivery, another task was enqueued with the same id, for example an
            # error handler for the second time. It is executed without a run.
            return task.execute()
        try:
            return task.execute()
        except (RunCancelled, RunInProgress, TransitionNotAllowed) as refused:
            if refused.run_id != task.id:
                raise  # the task works on other runs, too
            raise _cancel_execution(refused) from refused


def _is_tried_again(task: Any, error: BaseException) -> bool:
    """Tell whether Huey retries the task after this error, by the rules of ``Huey._execute()``."""
    if isinstance(error, RetryTask):
        return True
    if isinstance(error, CancelExecution) and error.retry is not None:
        return bool(error.retry)
    if isinstance(error, RATE_LIMITED) and error.retry:
        return True
    return isinstance(error, Exception) and task.retries > 0


def _on_dropped(huey: Any, signal: str, task: Any) -> None:
    """Cancel the run of a task that Huey does not execute, and store its result."""
    if not _is_tracked(huey, task) or (signal == SIGNAL_CANCELED and "execute" not in vars(task)):
        return  # the code of the task has raised CancelExecution: its execution ends the run
    try:
        with _without_old_connections(huey):
            status = run_rows(run_id=task.id).values_list("status", flat=True).first()
            if status in WAITING:
                reason = f"Huey dropped the task: {signal}."
                cancel_runs([task.id], requested_by="huey", reason=reason)
            elif status == RunStatus.CANCELLED:
                _end_as_cancelled(huey, task)
    except Exception:  # Huey 2.5 would skip the other receivers
        logger.exception("The run of task %s could not be cancelled.", printable(task.id))


def _end_as_cancelled(huey: Any, task: Any) -> None:
    """Store the result of a cancelled task for a dropped task and its pipeline.

    Huey stores none, and callers would wait for the result forever.
    """
    if huey.results and not isinstance(task, PeriodicTask):
        error = _cancel_execution(RunCancelled(task.id))
        for each in (task, *_links(task)):
            huey.put_result(each.id, Error(huey.build_error_result(task, error)))


def _cancel_execution(refused: Exception) -> CancelExecution:
    error = CancelExecution(retry=False)
    error.args = (str(refused),)  # the first parameter depends on the version
    return error


@contextmanager
def _without_old_connections(huey: Any) -> Iterator[None]:
    """Close old database connections before and after, as Huey's ``db_task`` does."""
    if huey.immediate:
        yield
        return
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


@contextmanager
def ends_cancelled() -> Iterator[None]:
    """End a task that ``dispatch()`` sends without a retry, if its run cannot start.

    Use it around ``execution()``.

    Raises:
        CancelExecution: ``execution()`` raised ``RunCancelled`` or ``RunInProgress``.
    """
    try:
        yield
    except (RunCancelled, RunInProgress) as refused:
        raise _cancel_execution(refused) from refused


# Public names for a project


def cancellable(target: Target) -> Target:
    """Make each task of a Huey instance, or one task, a run.

    Functions keep their signature, arguments, result, retries, delays and schedule. With
    ``@huey.task(run_cancel_detached=True)``, a run continues when the run that published it is
    cancelled.

    Args:
        target: The Huey instance, in ``AppConfig.ready()``; or a task, with ``@cancellable`` above
            ``@huey.task()``.

    Returns:
        ``target``.

    Raises:
        TypeError: ``target`` is neither a Huey instance nor a task.
    """
    if isinstance(target, Huey):
        _install(target)
        target.run_cancel_all = True
    elif isinstance(target, TaskWrapper):
        _install(target.huey)
        target.task_class.run_cancel_tracked = True
    else:
        raise TypeError(f"cancellable() takes a Huey or a task of one, not {target!r}.")
    return target


def _install(huey: Any) -> None:
    if hasattr(huey, "run_cancel_all"):
        return
    huey.run_cancel_all = False
    huey.enqueue = partial(_enqueue, huey, huey.enqueue)
    huey.read_schedule = partial(_read_schedule, huey.read_schedule)
    huey.signal(SIGNAL_EXECUTING)(partial(_before_execution, huey))
    huey.signal(SIGNAL_REVOKED, SIGNAL_EXPIRED, SIGNAL_CANCELED)(partial(_on_dropped, huey))
    djhuey: Any = sys.modules.get("huey.contrib.djhuey")
    if djhuey is not None and djhuey.HUEY is huey:
        djhuey.enqueue = huey.enqueue  # an alias of the replaced method
