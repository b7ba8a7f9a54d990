"""Procrastinate integration: makes each task a run, by one line for a project.

``PROCRASTINATE_ON_APP_READY = "django_run_cancel.integrations.procrastinate.cancellable"``.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial, wraps
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from procrastinate import App
from procrastinate.exceptions import JobAborted
from procrastinate.manager import JobManager

from django_run_cancel.backends.procrastinate import DISPATCHED, TRACKED
from django_run_cancel.exceptions import (
    RunCancelError,
    RunCancelled,
    RunInProgress,
    TransitionNotAllowed,
)
from django_run_cancel.execution import current_run
from django_run_cancel.integrations.tracking import (
    TaskMessage,
    backend_alias,
    cancel_dropped,
    executing,
    executing_async,
    is_tracked,
    record_published,
)
from django_run_cancel.models import run_rows

BACKEND = "django_run_cancel.backends.procrastinate.ProcrastinateBackend"

BUILTIN = ("builtin:", "procrastinate.")
"""Prefixes of the names of Procrastinate's internal tasks."""

DEFER = "batch_defer_jobs" if hasattr(JobManager, "batch_defer_jobs") else "defer_job"
"""Name of the JobManager's method that defers jobs, which depends on the version."""

logger = logging.getLogger("django_run_cancel")

# The job that the worker has fetched. It passes the job to a task only with pass_context=True.
_fetched: ContextVar[Any] = ContextVar("run_cancel_fetched_job", default=None)


# Publishing a task


def _defer(app: App, defer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    deferred = defer(*args, **kwargs)
    # On a connection of the host, with its own transaction, the run is created when the task
    # starts.
    if kwargs.get("connection") is None:
        _record(app, deferred)
    return deferred


async def _defer_async(
    app: App, defer: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
) -> Any:
    deferred = await defer(*args, **kwargs)
    if kwargs.get("connection") is None:
        await sync_to_async(_record)(app, deferred)
    return deferred


async def _defer_periodic(
    app: App, defer: Callable[..., Awaitable[int | None]], job: Any, *args: Any, **kwargs: Any
) -> int | None:
    job_id = await defer(job, *args, **kwargs)
    if job_id is not None:  # no other worker has deferred it
        await sync_to_async(_record)(app, job.evolve(id=job_id))
    return job_id


def _record(app: App, deferred: Any) -> None:
    """Create the runs of jobs."""
    for job in deferred if isinstance(deferred, list) else [deferred]:
        if _is_tracked(job):
            record_published(_message(app.tasks.get(job.task_name), job))


def _message(task: Any, job: Any) -> TaskMessage:
    run = None if getattr(task, "run_cancel_detached", False) else current_run()
    return TaskMessage(
        _run_id(job.id),
        job.task_name,
        kwargs=job.task_kwargs,
        backend=backend_alias(BACKEND),
        parent_id=run.run_id if run is not None else "",
    )


def _run_id(job_id: int) -> str:
    return f"{TRACKED}{job_id}"


def _is_tracked(job: Any) -> bool:
    is_dispatched = (job.queueing_lock or "").startswith(DISPATCHED)
    return not is_dispatched and not job.task_name.startswith(BUILTIN) and is_tracked(job.task_name)


# Executing a task, and its end


async def _fetch(app: App, fetch: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """Fetch a job, and remember it for its task, which is called next in a copy of this context."""
    job = await fetch(*args, **kwargs)
    task: Any = None if job is None else app.tasks.get(job.task_name)
    _fetched.set(None)
    if task is not None and _is_tracked(job):
        if not hasattr(task, "run_cancel_function"):
            task.run_cancel_function = task.func
            task.func = _cancellable_function(task)
        _fetched.set(job)
    return job


def _cancellable_function(task: Any) -> Callable[..., Any]:
    """Return a function that executes the run of a task; a direct call executes only the task."""
    function = task.run_cancel_function

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if (job := _take_fetched(task)) is None:
            return function(*args, **kwargs)
        with _ends_as_aborted(job), ExitStack() as stack:
            # The run has ended, and the host retries the job: it has no run.
            with suppress(TransitionNotAllowed):
                stack.enter_context(
                    executing(_message(task, job), requeue_on=_requeue_on(task, job))
                )
            result = function(*args, **kwargs)
            if isawaitable(result):
                return _await_in_execution(job, result, stack.pop_all())
            return result

    @wraps(function)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        if (job := _take_fetched(task)) is None:
            return await function(*args, **kwargs)
        with _ends_as_aborted(job):
            return await _execute_coroutine(task, job, function, *args, **kwargs)

    return acall if iscoroutinefunction(function) else call


def _take_fetched(task: Any) -> Any:
    """Return and forget the fetched job if a worker is calling this task; else None."""
    job = _fetched.get()
    if job is None or job.task_name not in (task.name, *task.aliases):
        return None
    _fetched.set(None)
    return job


async def _execute_coroutine(
    task: Any, job: Any, function: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
) -> Any:
    run = None
    try:
        async with AsyncExitStack() as stack:
            execution = executing_async(_message(task, job), requeue_on=_requeue_on(task, job))
            with suppress(TransitionNotAllowed):
                run = await stack.enter_async_context(execution)
            return await function(*args, **kwargs)
    except CancelledError:
        if run is not None and run.cancelled:
            raise RunCancelled(run.run_id) from None  # Procrastinate would retry CancelledError
        raise


async def _await_in_execution(job: Any, result: Awaitable[Any], stack: ExitStack) -> Any:
    """Await the result of a plain function that returned an awaitable, then leave its block."""
    leave = sync_to_async(stack.__exit__, thread_sensitive=False)
    with _ends_as_aborted(job):
        try:
            value = await result
        except BaseException as error:
            await leave(type(error), error, error.__traceback__)
            raise
        await leave(None, None, None)
        return value


def _requeue_on(task: Any, job: Any) -> Callable[[BaseException], bool]:
    def is_tried_again(error: BaseException) -> bool:
        is_aborted = isinstance(error, JobAborted)
        return not is_aborted and task.get_retry_exception(error, job) is not None

    return is_tried_again


@contextmanager
def _ends_as_aborted(job: Any) -> Iterator[None]:
    try:
        yield
    except (RunCancelled, RunInProgress, TransitionNotAllowed) as refused:
        if refused.run_id != _run_id(job.id):
            raise  # the task works on other runs, too
        raise JobAborted(str(refused)) from None


def _cancel(cancel: Callable[..., bool], job_id: int, *args: Any, **kwargs: Any) -> bool:
    """Cancel the run of a job that the host cancels or aborts."""
    is_cancelled = cancel(job_id, *args, **kwargs)
    if is_cancelled:
        _on_cancelled(job_id)
    return is_cancelled


async def _cancel_async(
    cancel: Callable[..., Awaitable[bool]], job_id: int, *args: Any, **kwargs: Any
) -> bool:
    is_cancelled = await cancel(job_id, *args, **kwargs)
    if is_cancelled:
        await sync_to_async(_on_cancelled)(job_id)
    return is_cancelled


def _on_cancelled(job_id: int) -> None:
    def cancel_run() -> None:
        reason = "The job has been cancelled."
        cancel_dropped(_run_id(job_id), requested_by="procrastinate", reason=reason)

    try:
        # Not a partial: to log an error of the function, Django needs its ``__qualname__``.
        transaction.on_commit(cancel_run, using=run_rows().db, robust=True)
    except SynchronousOnlyOperation:
        logger.exception(
            "The run of the job %s was not cancelled. In an event loop, call the function of "
            "Procrastinate whose name ends with _async.",
            job_id,
        )


@contextmanager
def ends_cancelled() -> Iterator[None]:
    """End a job that ``dispatch()`` sends as ``aborted``, if its run is cancelled or cannot start.

    Use it around ``execution()``, in functions and coroutines. Procrastinate then neither logs an
    error nor retries the job.

    Raises:
        JobAborted: The block raised a ``RunCancelError``.
    """
    try:
        yield
    except RunCancelError as refused:
        raise JobAborted(str(refused)) from refused


# Public names for a project


def cancellable(app: App) -> None:
    """Make each task of a Procrastinate app a run.

    Functions keep their signature, arguments, result, retries, locks, priority and schedule. With
    ``task.run_cancel_detached = True``, the runs of a task continue when the run that deferred them
    is cancelled.

    Args:
        app: The Procrastinate app.
    """
    manager: Any = app.job_manager
    setattr(manager, DEFER, partial(_defer, app, getattr(manager, DEFER)))
    deferring_async = f"{DEFER}_async"
    setattr(manager, deferring_async, partial(_defer_async, app, getattr(manager, deferring_async)))
    manager.defer_periodic_job = partial(_defer_periodic, app, manager.defer_periodic_job)
    manager.fetch_job = partial(_fetch, app, manager.fetch_job)
    manager.cancel_job_by_id = partial(_cancel, manager.cancel_job_by_id)
    manager.cancel_job_by_id_async = partial(_cancel_async, manager.cancel_job_by_id_async)
