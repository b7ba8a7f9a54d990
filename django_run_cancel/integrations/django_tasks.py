"""Django Tasks integration: makes each task a run, by one line for each entry of ``TASKS``.

``"BACKEND": "django_run_cancel.integrations.django_tasks.CancellableDatabaseBackend"``, or a
backend that inherits from ``CancellableBackendMixin``.
"""

# Modules that import models are imported in functions, as apps may declare tasks before the app
# registry is ready.

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

# The result of the task that the worker calls next. The call itself does not contain its id.
_started: ContextVar[Any] = ContextVar("run_cancel_started_task", default=None)

logger = logging.getLogger(TASKS_LOGGER)


# Publishing a task


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


# Executing a task, and its end


@receiver(task_started, dispatch_uid="django_run_cancel")
def _on_started(sender: Any, task_result: Any, **kwargs: Any) -> None:
    """Remember which task the worker calls next."""
    _started.set(task_result if _is_tracked(task_result) else None)


@dataclass(frozen=True, kw_only=True)
class CancellableTask(Task):  # type: ignore[type-arg]
    """A task, as ``@task`` creates it, that a worker executes as a run.

    Attributes:
        run_cancel_detached: Whether the run continues when the run that published it is cancelled:
            ``@task(run_cancel_detached=True)``.
    """

    run_cancel_detached: bool = False

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the function as the run of the task. A direct call executes only the function.

        Raises:
            RunCancelled: The run has been cancelled. The task result fails with this error.
            RunInProgress: Another worker is executing the run, and will write the result.
        """
        from django_run_cancel.integrations.tracking import executing

        if iscoroutinefunction(self.func):
            return async_to_sync(self.acall)(*args, **kwargs)
        started = self._take_started()
        with ExitStack() as stack:
            # A task that is enqueued and executed at once in an event loop has no run, as Django
            # refuses the ORM there.
            if started is not None and not orm_is_refused():
                # The run has ended, and the host has set the task to ready again: it has no run.
                with suppress(TransitionNotAllowed):
                    stack.enter_context(executing(_message(started)))
            return super().call(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Async version of ``call()``. A cancellation also stops the coroutine at an ``await``."""
        from django_run_cancel.integrations.tracking import executing_async

        async with AsyncExitStack() as stack:
            if (started := self._take_started()) is not None:
                with suppress(TransitionNotAllowed):
                    await stack.enter_async_context(executing_async(_message(started)))
            return await super().acall(*args, **kwargs)

    def _take_started(self) -> Any:
        """Return and forget the task result if a worker is calling this task; else None."""
        started = _started.get()
        if started is None or started.task.func is not self.func:
            return None
        _started.set(None)
        return started


@logger.addFilter
def _is_logged(record: logging.LogRecord) -> bool:
    """Log the cancellation of a task as INFO, without a traceback, instead of as an error."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, (RunCancelled, RunInProgress)):
        return True
    if error.run_id not in (record.args or ()):
        return True  # the task works on other runs, too
    record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
    return logger.isEnabledFor(logging.INFO)


# Public names for a project's settings


class CancellableBackendMixin:
    """Mixin for backends of Django Tasks: makes each task a run.

    Functions keep their signature, arguments, result, priority, queue and ``run_after``. Put the
    mixin before the backend in the base classes.
    """

    task_class: Any = CancellableTask


class CancellableDatabaseBackend(CancellableBackendMixin, DatabaseBackend):
    """The ``DatabaseBackend`` of django-tasks-db, which makes each task a run."""
