"""Huey: tasks become runs, with one line for a project or one for a task.

For all tasks of a Huey, in ``AppConfig.ready()``: ``cancellable(HUEY)``.
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

RATE_LIMITED: Any = getattr(exceptions, "RateLimitExceeded", ())  # of newer versions

logger = logging.getLogger("django_run_cancel")

Target = TypeVar("Target")


# What publishes a task


def _enqueue(huey: Any, enqueue: Callable[[Any], Any], task: Any) -> Any:
    """Create runs for a task, and for the tasks that follow in its pipeline, and enqueue it."""
    # A group or a chord enqueues its members by this function, one by one. In immediate mode the
    # task is executed here, and its run is created then.
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
    """Return the tasks of the schedule that are due: each has been published before."""
    tasks = read_schedule(*args)
    for task in tasks:
        task.run_cancel_recorded = True
    return tasks


def _is_recorded(task: Any) -> bool:
    """Tell whether a task that is enqueued has been published before, as before a retry."""
    return getattr(task, "run_cancel_recorded", False)


def _message(huey: Any, task: Any) -> TaskMessage:
    run = None if getattr(task, "run_cancel_detached", False) else current_run()
    alias = "" if huey.immediate else backend_alias(BACKEND)
    parent_id = run.run_id if run is not None else ""
    return TaskMessage(task.id, _name(task), task.args, task.kwargs, alias, parent_id)


def _links(task: Any) -> Iterator[Any]:
    """Yield the tasks that follow in a pipeline."""
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
        return False  # called in an event loop, it is executed there
    if not isinstance(task.id, str) or task.id.startswith(DISPATCHED):
        return False
    is_cancellable = huey.run_cancel_all or getattr(task, "run_cancel_tracked", False)
    return is_cancellable and is_tracked(_name(task), task.id)


# What executes it, and how it ends


def _before_execution(huey: Any, signal: str, task: Any) -> None:
    """Let the task be executed as its run: Huey calls ``task.execute()`` next."""
    if _is_tracked(huey, task):
        task.execute = partial(_execute, huey, task)


def _execute(huey: Any, task: Any) -> Any:
    del task.execute
    # Both are enqueued from here as the same objects: this task to be tried again, and the next.
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
            # Huey delivers a task once: this one was enqueued again under the same id, like the
            # error handler of a task that has failed twice. It is executed without a run.
            return task.execute()
        try:
            return task.execute()
        except (RunCancelled, RunInProgress, TransitionNotAllowed) as refused:
            if refused.run_id != task.id:
                raise  # the task works on other runs, too
            raise _cancel_execution(refused) from refused


def _is_tried_again(task: Any, error: BaseException) -> bool:
    """Tell whether Huey enqueues the task again after this error, as ``Huey._execute()`` does."""
    if isinstance(error, RetryTask):
        return True
    if isinstance(error, CancelExecution) and error.retry is not None:
        return bool(error.retry)
    if isinstance(error, RATE_LIMITED) and error.retry:
        return True
    return isinstance(error, Exception) and task.retries > 0


def _on_dropped(huey: Any, signal: str, task: Any) -> None:
    """Cancel the run of a task that Huey does not execute, and tell who waits for its result."""
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
    except Exception:  # Huey 2.5 would not tell the other receivers
        logger.exception("The run of task %s could not be cancelled.", printable(task.id))


def _end_as_cancelled(huey: Any, task: Any) -> None:
    """Store for a task that was dropped, and for its pipeline, what a cancelled task ends with.

    Huey stores nothing, and who waits for the result would wait for ever.
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
    """Close old connections before and after, as ``db_task`` does: a consumer has no requests."""
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
    """Let a task that ``dispatch()`` sends, and whose run may not start, end without a retry.

    Around an ``execution``.

    Raises:
        CancelExecution: Instead of ``RunCancelled`` and ``RunInProgress``.
    """
    try:
        yield
    except (RunCancelled, RunInProgress) as refused:
        raise _cancel_execution(refused) from refused


# What a project names


def cancellable(target: Target) -> Target:
    """Make all tasks of a Huey, or one task, runs of their own.

    Functions keep their signature, arguments, result, retries, delays and schedule.
    ``@huey.task(run_cancel_detached=True)`` lets a run go on when the run that has published it is
    cancelled.

    Args:
        target: The Huey, in ``AppConfig.ready()``; or a task, where ``@huey.task()`` and the like
            have made it: ``@cancellable`` stands above them.

    Returns:
        The same object.

    Raises:
        TypeError: It is neither.
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
        djhuey.enqueue = huey.enqueue  # its name for the method that has been replaced
