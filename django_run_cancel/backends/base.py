"""The base class of backends, and what goes into their methods and comes out."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_run_cancel.exceptions import BackendError, UnknownTask

if TYPE_CHECKING:
    from django_run_cancel.models import AbstractRun

__all__ = ["BackendError", "BaseBackend", "StopOutcome", "StopRequest", "TaskCall"]

DISPATCHED = "run_cancel_dispatched"
"""Header or option of a task that works on a run which exists already, and is no run of its own."""

MAX_TIMEOUT = 10.0
"""Seconds. A step of the delivery worker waits for a few of these, and must end within its lease.
"""


class StopOutcome(StrEnum):
    """What came of telling an executor to stop a run.

    Attributes:
        TOLD: Handed over, and the executor keeps it. Never proof that the run has stopped.
        TOLD_ONCE: Handed over, but perhaps nobody heard it or it is forgotten: it is repeated
            until the run has stopped.
        STOPPED: The executor confirms that the run is not running and will not run. If it was
            running, that a job which only waits has been dropped confirms nothing.
        UNSUPPORTED: This executor cannot do it; the code's own checkpoints or the deadline end
            the run.
    """

    TOLD = "told"
    TOLD_ONCE = "told_once"
    STOPPED = "stopped"
    UNSUPPORTED = "unsupported"


class StopRequest(NamedTuple):
    """One run to stop.

    Attributes:
        run_id: Public id of the run.
        external_id: Its id at the executor.
        running: Whether its code may be at work.
    """

    run_id: str
    external_id: str
    running: bool


class TaskCall(NamedTuple):
    """The task that works on a run and what it is given: the arguments of ``dispatch()``.

    Attributes:
        task: Name of the task; None for the one in the ``OPTIONS``.
        args: Positional arguments, after the run id.
        kwargs: Keyword arguments.
        options: How to send the task, in words of the executor.
    """

    task: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})


class BaseBackend:
    """An executor, as one alias of ``RUN_CANCEL_BACKENDS`` configures it.

    Instances are shared by threads.

    Attributes:
        can_stop_running: It asks running code to stop, beyond our own checkpoints.
        can_force: It kills running code.
        keeps_requests: The executor remembers what it is told; if not, it is told again until the
            run has stopped.
        required_options: Keys that ``OPTIONS`` must have.
        optional_options: Keys that it may have, besides ``TIMEOUT``.
        task_option: The key that names the task; blank if runs have no task to choose.
        dispatch_options: The options that ``dispatch()`` takes; None for any.
    """

    can_stop_running: ClassVar[bool] = False
    can_force: ClassVar[bool] = False
    keeps_requests: ClassVar[bool] = True
    required_options: ClassVar[frozenset[str]] = frozenset()
    optional_options: ClassVar[frozenset[str]] = frozenset()
    task_option: ClassVar[str] = ""
    dispatch_options: ClassVar[frozenset[str] | None] = frozenset()

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        """Take the options; connect to nothing.

        Args:
            alias: Its key in ``RUN_CANCEL_BACKENDS``.
            options: Its ``OPTIONS``. ``TIMEOUT`` is in seconds, 2 by default and at most 10.

        Raises:
            ImproperlyConfigured: An option is unknown, missing or wrong.
        """
        known = self.required_options | self.optional_options | {"TIMEOUT", self.task_option} - {""}
        if unknown := sorted(set(options) - known):
            raise ImproperlyConfigured(
                f"Backend {alias!r} has unknown OPTIONS: {', '.join(unknown)}. "
                f"It knows: {', '.join(sorted(known))}."
            )
        if missing := sorted(self.required_options - set(options)):
            raise ImproperlyConfigured(f"Backend {alias!r} needs OPTIONS: {', '.join(missing)}.")
        timeout = options.get("TIMEOUT", 2.0)
        if not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
            raise ImproperlyConfigured(
                f"TIMEOUT of the backend {alias!r} must be seconds, above 0 and up to "
                f"{MAX_TIMEOUT:g}."
            )
        self.alias = alias
        self.options = dict(options)
        self.timeout = float(timeout)

    def new_external_id(self, run: AbstractRun) -> str:
        """Return the id that a run will have at the executor; it is saved before ``dispatch``."""
        return str(uuid.uuid4())

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return system checks. Only ``manage.py check --deploy`` may connect to the executor.

        Args:
            kwargs: As Django gives them to system checks; ``deploy`` says whether it is that.
        """
        try:
            if self.task_option in self.options:
                self.get_task(self.options[self.task_option])
        except UnknownTask as error:
            return [
                Error(
                    f"{error} ({error.__cause__})" if error.__cause__ else str(error),
                    hint=f"Correct OPTIONS[{self.task_option!r}], or see why its module is not "
                    "imported.",
                    id="django_run_cancel.E015",
                )
            ]
        if not kwargs.get("deploy"):
            return []
        try:
            self.ping()
        except Exception as error:  # noqa: BLE001 - of any client
            return [
                Warning(
                    f"The executor of the backend {self.alias!r} does not answer: {error!r}.",
                    hint=f"Start its broker, or correct RUN_CANCEL_BACKENDS[{self.alias!r}].",
                    id="django_run_cancel.W005",
                )
            ]
        return []

    def get_task(self, name: str) -> Any:
        """Return the task with this name. By default the name is a dotted path.

        Raises:
            UnknownTask: There is none.
        """
        try:
            return import_string(name)
        except ImportError as error:
            raise UnknownTask(self.alias, name) from error

    def check_call(self, call: TaskCall) -> None:
        """Check a call before it is accepted for dispatch; the executor is not connected to.

        Raises:
            TypeError: This backend cannot send such a call.
            UnknownTask: It has no such task.
        """
        if call.task is None:
            if self.task_option and self.task_option not in self.options:
                raise TypeError(
                    f"Name a task: dispatch(run, {self.alias!r}, task=…). The backend has no "
                    f"OPTIONS[{self.task_option!r}]."
                )
        elif not self.task_option:
            raise TypeError(f"Runs of the backend {self.alias!r} have no task to choose.")
        else:
            self.get_task(call.task)
        if self.dispatch_options is None:
            return
        if unknown := sorted(set(call.options) - self.dispatch_options):
            raise TypeError(
                f"The backend {self.alias!r} takes no {', '.join(unknown)}. dispatch() takes for "
                f"it: {', '.join(sorted(self.dispatch_options)) or 'no options'}."
            )

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008
        """Hand a run to the executor as ``run.external_id``, within the timeout.

        A run may be handed over more than once, after a process that died before it could say that
        it had. The task gets the ``run_id`` first, and then what the call names.

        Args:
            run: The run.
            call: What ``check_call()`` has accepted, as JSON would give it back.

        Raises:
            BackendError: The executor could not be reached, or refused.
        """
        raise NotImplementedError

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Tell the executor to stop runs, those first that are running.

        Unknown, finished and repeated ids are no error. An executor that is away costs one timeout
        and not one for each id.

        Args:
            requests: The runs.
            force: Kill running code, where that can be done.

        Returns:
            For each external id what came of it, or the exception that prevented it.
        """
        raise NotImplementedError

    def ping(self) -> None:
        """Reach the executor within the timeout, or raise anything. By default, do nothing."""
