"""Django Tasks: tasks become runs, with one line for each entry of ``TASKS``.

``"BACKEND": "django_run_cancel.integrations.django_tasks.CancellableDatabaseBackend"``, or a
backend that inherits from ``CancellableBackendMixin``.
"""

# What imports models is imported in functions: apps that declare tasks may be imported before.

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, ExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from django.dispatch import receiver
from django_tasks_db.backend import DatabaseBackend
from django_tasks_db.compat import TASKS_LOGGER, Task, task_enqueued, task_started

from django_run_cancel.db.event_loop import orm_is_refused
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed

if TYPE_CHECKING:
    from django_run_cancel.integrations.tracking import TaskMessage

BACKEND = "django_run_cancel.backends.django_tasks.DjangoTasksBackend"

# The result of the task that a worker calls next: it tells a task its arguments, not its id.
_started: ContextVar[Any] = ContextVar("run_cancel_started_task", default=None)

logger = logging.getLogger(TASKS_LOGGER)


# What publishes a task


@receiver(task_enqueued, dispatch_uid="django_run_cancel")
def _on_enqueued(sender: Any, task_result: Any, **kwargs: Any) -> None:
    """Create the run of a task."""
    from django_run_cancel.integrations.tracking import record_published

    if _is_tracked(task_result):
        record_published(_message(task_result))


def _message(task_result: Any) -> TaskMessage:
    from django_run_cancel.execution import current_run
    from django_run_cancel.integrations.tracking import TaskMessage, backend_alias

    task = task_result.task
    run = None if task.run_cancel_detached else current_run()
    return TaskMessage(
        task_result.id,
        task.module_path,
        task_result.args,
        task_result.kwargs,
        backend=backend_alias(BACKEND) if isinstance(task.get_backend(), DatabaseBackend) else "",
        parent_id=run.run_id if run is not None else "",
    )


def _is_tracked(task_result: Any) -> bool:
    from django_run_cancel.backends.django_tasks import DISPATCHED
    from django_run_cancel.integrations.tracking import is_tracked

    task = task_result.task
    return (
        isinstance(task, CancellableTask)
        and isinstance(task.get_backend(), CancellableBackendMixin)
        and not task_result.id.startswith(DISPATCHED)
        and is_tracked(task.module_path, task_result.id)
    )


# What executes it, and how it ends


@receiver(task_started, dispatch_uid="django_run_cancel")
def _on_started(sender: Any, task_result: Any, **kwargs: Any) -> None:
    """Note which task the worker calls next."""
    _started.set(task_result if _is_tracked(task_result) else None)


@dataclass(frozen=True, kw_only=True)
class CancellableTask(Task):  # type: ignore[type-arg]
    """A task that is a run of its own when a worker executes it. What ``@task`` makes.

    Attributes:
        run_cancel_detached: Whether the run goes on when the run that has published it is
            cancelled: ``@task(run_cancel_detached=True)``.
    """

    run_cancel_detached: bool = False

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the run of the task; called directly, only the function.

        Raises:
            RunCancelled: The run has been cancelled. It is what the result has failed with.
            RunInProgress: Another worker executes it, and writes the result when it ends.
        """
        from django_run_cancel.integrations.tracking import executing

        if iscoroutinefunction(self.func):
            return async_to_sync(self.acall)(*args, **kwargs)
        started = self._take_started()
        with ExitStack() as stack:
            # Enqueued in an event loop and executed at once, it has no run: the ORM is refused.
            if started is not None and not orm_is_refused():
                # A run that has ended: the host has made the task ready again, for no run.
                with suppress(TransitionNotAllowed):
                    stack.enter_context(executing(_message(started)))
            return super().call(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """As ``call()``; the run that is cancelled also stops a coroutine where it waits."""
        from django_run_cancel.integrations.tracking import executing_async

        async with AsyncExitStack() as stack:
            if (started := self._take_started()) is not None:
                with suppress(TransitionNotAllowed):
                    await stack.enter_async_context(executing_async(_message(started)))
            return await super().acall(*args, **kwargs)

    def _take_started(self) -> Any:
        """Return the result of this task if a worker calls it, once."""
        started = _started.get()
        if started is None or started.task.func is not self.func:
            return None
        _started.set(None)
        return started


@logger.addFilter
def _is_logged(record: logging.LogRecord) -> bool:
    """Log that a task was cancelled as what was asked for: as no error, without a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, (RunCancelled, RunInProgress)):
        return True
    if error.run_id not in (record.args or ()):
        return True  # the task works on other runs, too
    record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
    return logger.isEnabledFor(logging.INFO)


# What a project names


class CancellableBackendMixin:
    """Makes the tasks of a backend of Django Tasks runs of their own.

    Functions keep their signature, arguments, result, priority, queue and ``run_after``. To be
    inherited from before the backend.
    """

    task_class: Any = CancellableTask


class CancellableDatabaseBackend(CancellableBackendMixin, DatabaseBackend):
    """The ``DatabaseBackend`` of django-tasks-db, whose tasks are runs of their own."""
