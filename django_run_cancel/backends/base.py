"""``BaseBackend``, the base class of backends, and the types of its arguments and results."""

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
"""Header or option of tasks that ``dispatch()`` sends: integrations create no run for them."""

MAX_TIMEOUT = 10.0
"""Maximum of the option TIMEOUT, in seconds.

A step of the delivery worker may wait for several timeouts, and must end before its claim expires.
"""


class StopOutcome(StrEnum):
    """Result of a stop request to an executor.

    Attributes:
        TOLD: The executor has stored the request. This does not prove that the run has stopped.
        TOLD_ONCE: The request was sent, but workers may miss or forget it. The delivery worker
            repeats it until the run has stopped.
        STOPPED: The executor confirms that the code of the run is not executing and will not be.
            If the run was running, dropping a waiting job does not confirm that.
        UNSUPPORTED: The executor cannot stop the run; its own checkpoints or the deadline end it.
    """

    TOLD = "told"
    TOLD_ONCE = "told_once"
    STOPPED = "stopped"
    UNSUPPORTED = "unsupported"


class StopRequest(NamedTuple):
    """One run to stop.

    Attributes:
        run_id: Public id of the run.
        external_id: Id of its task at the executor.
        running: Whether its code may be executing.
    """

    run_id: str
    external_id: str
    running: bool


class TaskCall(NamedTuple):
    """The task of a run with its arguments, as passed to ``dispatch()``.

    Attributes:
        task: Name of the task; None for the one in the ``OPTIONS``.
        args: Positional arguments, after the run id.
        kwargs: Keyword arguments.
        options: Options of the executor for sending the task.
    """

    task: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})


class BaseBackend:
    """Base class of backends. An instance tells the executor of one alias to start and stop jobs.

    Threads share an instance.

    Attributes:
        can_stop_running: Whether ``stop()`` without force interrupts running code.
        can_force: Whether ``stop()`` with force kills running code.
        keeps_requests: Whether the executor stores stop requests. If not, the delivery worker
            repeats them until the run has stopped.
        required_options: Keys that ``OPTIONS`` must have.
        optional_options: Keys that ``OPTIONS`` may have, besides ``TIMEOUT``.
        task_option: Key of ``OPTIONS`` with the default task; blank if the backend has no tasks.
        dispatch_options: Options that ``dispatch()`` accepts; None for any.
    """

    can_stop_running: ClassVar[bool] = False
    can_force: ClassVar[bool] = False
    keeps_requests: ClassVar[bool] = True
    required_options: ClassVar[frozenset[str]] = frozenset()
    optional_options: ClassVar[frozenset[str]] = frozenset()
    task_option: ClassVar[str] = ""
    dispatch_options: ClassVar[frozenset[str] | None] = frozenset()

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        """Validate the options, without connecting to the executor.

        Args:
            alias: Key in ``RUN_CANCEL_BACKENDS``.
            options: The ``OPTIONS``. ``TIMEOUT`` is in seconds, 2 by default and at most 10.

        Raises:
            ImproperlyConfigured: An option is unknown, missing or invalid.
        """
        allowed = self.required_options | self.optional_options
        allowed |= {"TIMEOUT", self.task_option} - {""}
        if unknown := sorted(set(options) - allowed):
            raise ImproperlyConfigured(
                f"Backend {alias!r} has unknown OPTIONS: {', '.join(unknown)}. "
                f"It knows: {', '.join(sorted(allowed))}."
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
        """Return a new ``external_id`` for a run, which is saved before ``dispatch()``."""
        return str(uuid.uuid4())

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return messages of system checks; connect to the executor only with ``check --deploy``.

        Args:
            kwargs: The arguments that Django passes to system checks, and ``deploy``, a bool.
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
        """Return the task with this name; by default the name is a dotted path.

        Raises:
            UnknownTask: There is no task with this name.
        """
        try:
            return import_string(name)
        except ImportError as error:
            raise UnknownTask(self.alias, name) from error

    def check_call(self, call: TaskCall) -> None:
        """Validate a call before ``dispatch()``, without connecting to the executor.

        Raises:
            TypeError: The backend does not support the call.
            UnknownTask: There is no task with this name.
        """
        if call.task is None:
            if self.task_option and self.task_option not in self.options:
                raise TypeError(
                    f"Name a task: dispatch(run, {self.alias!r}, task=…). The backend has no "
                    f"OPTIONS[{self.task_option!r}]."
                )
        elif not self.task_option:
            raise TypeError(f"The backend {self.alias!r} takes no task.")
        else:
            self.get_task(call.task)
        if self.dispatch_options is None:
            return
        if unknown := sorted(set(call.options) - self.dispatch_options):
            raise TypeError(
                f"The backend {self.alias!r} takes no {', '.join(unknown)}. dispatch() takes for "
                f"it: {', '.join(sorted(self.dispatch_options)) or 'no options'}."
            )

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Send the task of a run to the executor, with the id ``run.external_id``.

        The task's first argument is the ``run_id``; those of the call follow. The method returns
        within the timeout. It may be called again for the same run, if a process died before it
        recorded the dispatch.

        Args:
            run: The run.
            call: A call that ``check_call()`` has accepted, with JSON values.

        Raises:
            BackendError: The executor could not be reached, or refused the task.
        """
        raise NotImplementedError

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Send stop requests to the executor.

        Unknown, finished and repeated ids are no error. If the executor is unavailable, the call
        takes one timeout, not one for each id.

        Args:
            requests: The runs to stop; running ones come first.
            force: Whether to kill running code, if the executor can.

        Returns:
            The outcome, or the exception that prevented it, by external id.
        """
        raise NotImplementedError

    def ping(self) -> None:
        """Connect to the executor within the timeout, or raise an error. By default, do nothing."""
