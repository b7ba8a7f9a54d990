"""The execution of the current context, for code that has no reference to its ``Execution``.

Coroutines, asyncio tasks and threads that copy the context (``asyncio.to_thread``,
``sync_to_async``, ``contextvars.copy_context().run``) share the execution of the code that started
them; a bare ``threading.Thread`` or ``ThreadPoolExecutor`` does not.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from django_run_cancel.execution.callbacks import DEFAULT_DEADLINE, Callback

if TYPE_CHECKING:
    from django_run_cancel.execution.block import ExecutionBlock
    from django_run_cancel.execution.executions import Execution

_innermost: ContextVar[Any] = ContextVar("run_cancel_execution", default=None)


def current_run() -> Execution | None:
    """Return the innermost execution whose block the calling code is in.

    Returns:
        The execution, whose ``run`` is the run; None outside of ``execution()``.
    """
    execution: Execution | None = _innermost.get()
    # A generator can leave its block later than the blocks around it, or in another context.
    while execution is not None and not execution._is_inside_block:
        execution = execution._outer
    return execution


def checkpoint() -> None:
    """Raise an error if the current run must stop; otherwise count as a sign of life.

    Outside of ``execution()`` this does nothing.

    Raises:
        RunCancelled: The run has been cancelled.
        RunInProgress: Another execution has taken over the run.
        TransitionNotAllowed: Another process has ended the run without cancelling it.
    """
    if (execution := current_run()) is not None:
        execution.checkpoint()


def on_cancel(callback: Callback, *, deadline: float = DEFAULT_DEADLINE) -> None:
    """Register a function to be called as soon as the current run must stop.

    Outside of ``execution()`` this does nothing.

    Args:
        callback: As for ``Execution.on_cancel()``.
        deadline: Maximum duration in seconds.

    Raises:
        ValueError: The deadline is not a finite number above 0.
    """
    if (execution := current_run()) is not None:
        execution.on_cancel(callback, deadline=deadline)


def enter(execution: ExecutionBlock) -> None:
    """Make an execution the current one of this context, inside of the one before."""
    execution._outer = current_run()
    execution._is_inside_block = True
    _innermost.set(execution)


def leave(execution: ExecutionBlock) -> None:
    """Restore the execution that was current before."""
    execution._is_inside_block = False
    if _innermost.get() is execution:
        _innermost.set(execution._outer)
