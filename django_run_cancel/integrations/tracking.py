"""Runs for the tasks that a host already has: created when one is published, executed when it runs.

What every integration shares. A module for an executor has, in this order: what publishes a task,
what executes it, how a cancelled task ends, and the class or function that a project names once.
The run's id is the id of the task.
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
    """Tell whether a task is a run: whether ``RUN_CANCEL_TRACK`` has a pattern for its name.

    Args:
        name: Name of the task.
        task_id: Its id, if it is known. A task whose id no run can have is none; that is logged.
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
    """Return the first alias of ``RUN_CANCEL_BACKENDS`` with this class; blank if there is none."""
    for alias, configuration in settings.BACKENDS.items():
        if configuration.get("BACKEND") == path:
            return alias
    return ""


def record_published(task: TaskMessage, *later: TaskMessage) -> None:
    """Create the runs of tasks once the transaction that publishes them has committed.

    Not at once: the consumer would wait for its publisher, which may wait for the result. What
    goes wrong is logged; the run is created when the task starts then.

    Args:
        task: The task.
        later: Tasks that the executor publishes one after the other, each when the one before it
            has succeeded.
    """
    _on_commit(_create_published, [task, *later])


def fail_unpublished(*run_ids: str, error: BaseException) -> None:
    """Let waiting runs fail whose tasks will not be published after all.

    One could not be published, or follows a task that has failed. Once the transaction commits, if
    there is one. What goes wrong is logged.

    Args:
        run_ids: The runs.
        error: Why.
    """
    _on_commit(_fail, run_ids, WAITING, error)


@contextmanager
def executing(
    task: TaskMessage, *, requeue_on: Requeue = (), published: Sequence[TaskMessage] = ()
) -> Iterator[Execution]:
    """Execute the run of a task, and create it if that was not done when it was published.

    A message that was delivered again waits until it is clear whether its first execution is alive.
    While the database is away the task waits, too, and its end is written later; an end that cannot
    be written is logged.

    Args:
        task: The task.
        requeue_on: As for ``execution()``.
        published: The tasks that were published with it, and itself, as for
            ``record_published()``: their runs are created with its own. By default itself.

    Raises:
        RunCancelled: The run has been cancelled, or the run that published it.
        RunInProgress: Another execution has it.
        TransitionNotAllowed: It has ended.
    """
    with ExitStack() as stack:
        try:
            run = stack.enter_context(_execution(task, requeue_on))
        except TransitionNotAllowed as error:
            if _has_ended(error):
                raise
            _ask(create_runs, published or [task])
            run = stack.enter_context(_execution(task, requeue_on))
        _ask(stop_with_ancestors, run.run)
        yield run
    if run.cancelled:
        stop_waiting_children(run)


@asynccontextmanager
async def executing_async(
    task: TaskMessage, *, requeue_on: Requeue = ()
) -> AsyncIterator[Execution]:
    """Execute the run of a task whose function is a coroutine, as ``executing()`` does.

    Cancelling the run also stops the coroutine where it waits.

    Args:
        task: The task.
        requeue_on: As for ``execution()``.

    Raises:
        RunCancelled: The run has been cancelled, or the run that published it.
        RunInProgress: Another execution has it.
        TransitionNotAllowed: It has ended.
    """
    async with AsyncExitStack() as stack:
        try:
            run = await stack.enter_async_context(_execution(task, requeue_on))
        except TransitionNotAllowed as error:
            if _has_ended(error):
                raise
            await _ask_async(create_runs, [task])
            run = await stack.enter_async_context(_execution(task, requeue_on))
        await _ask_async(stop_with_ancestors, run.run)
        yield run


def _execution(task: TaskMessage, requeue_on: Requeue) -> Execution:
    return Execution(task.task_id, "if_dead", requeue_on, "process", is_tracked=True)


def _ask(action: Callable[..., None], *args: Any) -> None:
    using, delays = run_rows().db, retry.START_DELAYS
    retry.retry_on_outage(_ask_once, action, *args, using=using, delays=delays)


async def _ask_async(action: Callable[..., None], *args: Any) -> None:
    patience = retry.Patience(run_rows().db, retry.START_DELAYS)
    await retry_in_orm_thread(partial(in_orm_thread, _ask_once, action, *args), patience)


def _ask_once(action: Callable[..., None], *args: Any) -> None:
    with given_back_to_pool(run_rows().db):
        action(*args)


def _has_ended(refused: TransitionNotAllowed) -> bool:
    # Otherwise the run does not exist, or its publisher committed it after this start was refused.
    return refused.current is not None and refused.current not in WAITING


def cancel_dropped(run_id: str, *others: str, requested_by: str, reason: str) -> None:
    """Cancel a run whose task the executor has dropped, and the runs that wait for it.

    Those that have ended stay as they are.

    Args:
        run_id: The run. If it has been cancelled already, the others are for the same reason.
        others: The runs that wait for it.
        requested_by: Name of the executor.
        reason: Why it has dropped the task, for people.
    """
    runs = run_rows(run_id__in=[run_id, *others])
    with _connection_closed_after_first_use():
        found = {run.run_id: run for run in runs.select_related("cancellation")}
        active = [each for each, run in found.items() if run.status in ACTIVE]
        dropped = found.get(run_id)
        record = getattr(dropped, "cancellation", None)
        if record is not None:
            requested_by, reason = record.requested_by, record.reason
        if active:
            cancel_runs(active, requested_by=requested_by, reason=reason)


def fail_dropped(*run_ids: str, error: BaseException) -> None:
    """Let runs fail whose tasks the executor will not execute any more.

    Those that have ended stay as they are.

    Args:
        run_ids: The runs.
        error: Why.
    """
    with _connection_closed_after_first_use():
        _fail(run_ids, ACTIVE, error)


@contextmanager
def _connection_closed_after_first_use() -> Iterator[None]:
    """Leave no connection behind in a process that had none, such as the parent of workers."""
    connection = connections[run_rows().db]
    had_none = connection.connection is None
    try:
        yield
    finally:
        if had_none:
            connection.close()


def _on_commit(function: Callable[..., None], *args: Any) -> None:
    """Call a function once the transaction commits, and let no error reach the publisher."""

    def call() -> None:
        with _publisher_unharmed():
            function(*args)

    with _publisher_unharmed():
        transaction.on_commit(call, using=run_rows().db)


@contextmanager
def _publisher_unharmed() -> Iterator[None]:
    try:
        yield
    except SynchronousOnlyOperation:
        pass  # In an event loop: the run is created when the task starts.
    except Exception:
        logger.exception("The run of a task could not be written when it was published.")


def _create_published(tasks: Sequence[TaskMessage]) -> None:
    try:
        create_runs(tasks)
    except (InterfaceError, OperationalError):
        connection = connections[run_rows().db]
        if connection.in_atomic_block or (connection.connection and connection.is_usable()):
            raise
        connection.close()  # a scheduler publishes rarely, and has no requests that close it
        create_runs(tasks)


def _fail(run_ids: Sequence[str], statuses: Collection[str], error: BaseException) -> None:
    reason = describe_error(error, MAX_FAILURE_REASON_LENGTH)
    values = {"status": RunStatus.FAILED, "failure_reason": reason, "finished_at": DatabaseNow()}
    for run_id in run_ids:
        run_rows(run_id=run_id, status__in=statuses).update(**values)
