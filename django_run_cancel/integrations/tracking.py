"""Shared code of the integrations: creates the runs of published tasks, and executes them.

The module of each executor has, in this order: publishing a task, executing it, the end of a
cancelled task, and the class or function for a project's settings. The id of a run is that of its
task.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import Any

from django.core.exceptions import SynchronousOnlyOperation
from django.db import InterfaceError, OperationalError, connections, transaction

from django_run_cancel.cancellation.arguments import MAX_RUN_ID_LENGTH
from django_run_cancel.cancellation.records import recorded_id
from django_run_cancel.cancellation.service import cancel_runs
from django_run_cancel.conf import settings
from django_run_cancel.db import retry
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.db.sessions import given_back_to_pool
from django_run_cancel.exceptions import TransitionNotAllowed
from django_run_cancel.execution.executions import Execution
from django_run_cancel.execution.ownership import MAX_FAILURE_REASON_LENGTH, Requeue
from django_run_cancel.execution.shield import in_orm_thread, retry_in_orm_thread
from django_run_cancel.integrations.ancestors import stop_waiting_children, stop_with_ancestors
from django_run_cancel.integrations.task_runs import TaskMessage, create_runs
from django_run_cancel.models import run_rows
from django_run_cancel.models.ids import is_storable
from django_run_cancel.safe_text import describe_error, printable
from django_run_cancel.states import ACTIVE, WAITING, RunStatus

__all__ = [
    "TaskMessage",
    "backend_alias",
    "cancel_dropped",
    "executing",
    "executing_async",
    "fail_dropped",
    "fail_unpublished",
    "is_tracked",
    "record_published",
]

logger = logging.getLogger("django_run_cancel")
_warn_once = lru_cache(1_000)(logger.warning)


def is_tracked(name: str, task_id: str = "") -> bool:
    """Tell whether a task becomes a run, by the patterns in ``RUN_CANCEL_TRACK``.

    Args:
        name: Name of the task.
        task_id: Id of the task, if known. If it is no valid run id, the task becomes no run, and a
            warning is logged.
    """
    wanted = [pattern for pattern in settings.TRACK if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in settings.TRACK if pattern.startswith("!")]
    if not _matches(name, wanted) or _matches(name, unwanted):
        return False
    if is_storable(task_id, MAX_RUN_ID_LENGTH):
        return True
    _warn_once(
        "%s cannot be cancelled: no run can have the id %s.", printable(name), recorded_id(task_id)
    )
    return False


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def backend_alias(path: str) -> str:
    """Return the first alias of ``RUN_CANCEL_BACKENDS`` with this class; blank without one."""
    for alias, configuration in settings.BACKENDS.items():
        if configuration.get("BACKEND") == path:
            return alias
    return ""


def record_published(task: TaskMessage, *later: TaskMessage) -> None:
    """Create the runs of published tasks after the commit of the current transaction.

    An uncommitted row would make the worker wait for the publisher, which may be waiting for the
    result. Errors are logged; then the run is created when the task starts.

    Args:
        task: The task.
        later: Tasks that the executor publishes in turn, each after the success of the previous.
    """
    _on_commit(_create_published, [task, *later])


def fail_unpublished(*run_ids: str, error: BaseException) -> None:
    """Set waiting runs to failed whose tasks will not be published, after the commit.

    Publishing has failed, or the previous task of a chain. Errors are logged.

    Args:
        run_ids: Public ids.
        error: The reason.
    """
    _on_commit(_fail, run_ids, WAITING, error)


@contextmanager
def executing(
    task: TaskMessage, *, requeue_on: Requeue = (), published: Sequence[TaskMessage] = ()
) -> Iterator[Execution]:
    """Execute the run of a task; create the run if it does not exist yet.

    A redelivered message waits until it is known whether the first execution is alive. During an
    outage of the database, the start and the end of the run wait; an end that cannot be written is
    logged.

    Args:
        task: The task.
        requeue_on: As for ``execution()``.
        published: The task and the others that were published with it, as for
            ``record_published()``, whose runs are created if missing. By default only the task.

    Raises:
        RunCancelled: The run, or the run that published it, has been cancelled.
        RunInProgress: Another execution owns the run.
        TransitionNotAllowed: The run has ended.
    """
    with ExitStack() as stack:
        try:
            run = stack.enter_context(_execution(task, requeue_on))
        except TransitionNotAllowed as error:
            if _has_ended(error):
                raise
            _retry(create_runs, published or [task])
            run = stack.enter_context(_execution(task, requeue_on))
        _retry(stop_with_ancestors, run.run)
        yield run
    if run.cancelled:
        stop_waiting_children(run)


@asynccontextmanager
async def executing_async(
    task: TaskMessage, *, requeue_on: Requeue = ()
) -> AsyncIterator[Execution]:
    """Async version of ``executing()``. A cancellation also stops the coroutine at an ``await``.

    Args:
        task: The task.
        requeue_on: As for ``execution()``.

    Raises:
        RunCancelled: The run, or the run that published it, has been cancelled.
        RunInProgress: Another execution owns the run.
        TransitionNotAllowed: The run has ended.
    """
    async with AsyncExitStack() as stack:
        try:
            run = await stack.enter_async_context(_execution(task, requeue_on))
        except TransitionNotAllowed as error:
            if _has_ended(error):
                raise
            await _retry_async(create_runs, [task])
            run = await stack.enter_async_context(_execution(task, requeue_on))
        await _retry_async(stop_with_ancestors, run.run)
        yield run


def _execution(task: TaskMessage, requeue_on: Requeue) -> Execution:
    return Execution(task.task_id, "if_dead", requeue_on, "process", is_tracked=True)


def _retry(action: Callable[..., None], *args: Any) -> None:
    using, delays = run_rows().db, retry.START_DELAYS
    retry.retry_on_outage(_call_once, action, *args, using=using, delays=delays)


async def _retry_async(action: Callable[..., None], *args: Any) -> None:
    patience = retry.Patience(run_rows().db, retry.START_DELAYS)
    await retry_in_orm_thread(partial(in_orm_thread, _call_once, action, *args), patience)


def _call_once(action: Callable[..., None], *args: Any) -> None:
    with given_back_to_pool(run_rows().db):
        action(*args)


def _has_ended(refused: TransitionNotAllowed) -> bool:
    # If not, the run does not exist, or was committed only after its start was refused.
    return refused.current is not None and refused.current not in WAITING


def cancel_dropped(run_id: str, *others: str, requested_by: str, reason: str) -> None:
    """Cancel the run of a task that the executor has dropped, and runs that depend on it.

    Runs that have ended stay unchanged.

    Args:
        run_id: Public id of the run. If it was cancelled before, the requester and reason of that
            cancellation also apply to the others.
        others: Public ids of runs that depend on it.
        requested_by: Name of the executor.
        reason: Reason, for users.
    """
    runs = run_rows(run_id__in=[run_id, *others])
    with _connection_closed_after_first_use():
        runs_by_id = {run.run_id: run for run in runs.select_related("cancellation")}
        active = [each for each, run in runs_by_id.items() if run.status in ACTIVE]
        dropped = runs_by_id.get(run_id)
        record = getattr(dropped, "cancellation", None)
        if record is not None:
            requested_by, reason = record.requested_by, record.reason
        if active:
            cancel_runs(active, requested_by=requested_by, reason=reason)


def fail_dropped(*run_ids: str, error: BaseException) -> None:
    """Set runs to failed whose tasks the executor will not execute any more.

    Runs that have ended stay unchanged.

    Args:
        run_ids: Public ids.
        error: The reason.
    """
    with _connection_closed_after_first_use():
        _fail(run_ids, ACTIVE, error)


@contextmanager
def _connection_closed_after_first_use() -> Iterator[None]:
    """Close the database connection if it was opened inside, e.g. in a worker's main process.

    Forked worker processes would otherwise inherit it.
    """
    connection = connections[run_rows().db]
    had_none = connection.connection is None
    try:
        yield
    finally:
        if had_none:
            connection.close()


def _on_commit(function: Callable[..., None], *args: Any) -> None:
    """Call a function after the commit, and log its errors instead of raising them."""

    def call() -> None:
        with _errors_logged():
            function(*args)

    with _errors_logged():
        transaction.on_commit(call, using=run_rows().db)


@contextmanager
def _errors_logged() -> Iterator[None]:
    try:
        yield
    except SynchronousOnlyOperation:
        pass  # in an event loop; the run is created when the task starts
    except Exception:
        logger.exception(
            "The run of a task could not be written when it was published."
            " A worker writes it before it starts the task."
        )


def _create_published(tasks: Sequence[TaskMessage]) -> None:
    try:
        create_runs(tasks)
    except (InterfaceError, OperationalError):
        connection = connections[run_rows().db]
        if connection.in_atomic_block or (connection.connection and connection.is_usable()):
            raise
        connection.close()  # e.g. a scheduler, which never closes stale connections
        create_runs(tasks)


def _fail(run_ids: Sequence[str], statuses: Collection[str], error: BaseException) -> None:
    reason = describe_error(error, MAX_FAILURE_REASON_LENGTH)
    values = {"status": RunStatus.FAILED, "failure_reason": reason, "finished_at": DatabaseNow()}
    for run_id in run_ids:
        run_rows(run_id=run_id).filter(is_one_of("status", statuses)).update(**values)
