"""What a backend is. Write your own by inheriting from ``BaseBackend``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from django.core.checks import CheckMessage, Warning
from django.core.exceptions import ImproperlyConfigured

from django_run_cancel.exceptions import BackendError

if TYPE_CHECKING:
    from django_run_cancel.models import AbstractRun

__all__ = ["BackendError", "BaseBackend", "StopOutcome", "StopRequest"]


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


class BaseBackend:
    """An executor, as one alias of ``RUN_CANCEL_BACKENDS`` configures it.

    Instances are shared by threads.

    Attributes:
        can_drop_queued: It removes a job from the queue, so that it is not even delivered.
        can_stop_running: It asks running code to stop, beyond our own checkpoints.
        can_force: It kills running code.
        stops_many: It tells many ids to the executor in one call.
        keeps_requests: The executor remembers what it is told; if not, it is told again until the
            run has stopped.
        required_options: Keys that ``OPTIONS`` must have.
        optional_options: Keys that it may have, besides ``TIMEOUT``.
    """

    can_drop_queued: ClassVar[bool] = False
    can_stop_running: ClassVar[bool] = False
    can_force: ClassVar[bool] = False
    stops_many: ClassVar[bool] = False
    keeps_requests: ClassVar[bool] = True
    required_options: ClassVar[frozenset[str]] = frozenset()
    optional_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        """Take the options; connect to nothing.

        Args:
            alias: Its key in ``RUN_CANCEL_BACKENDS``.
            options: Its ``OPTIONS``. ``TIMEOUT`` is in seconds, 2 by default and at most 10.

        Raises:
            ImproperlyConfigured: An option is unknown, missing or wrong.
        """
        known = self.required_options | self.optional_options | {"TIMEOUT"}
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

    def dispatch(self, run: AbstractRun) -> None:
        """Hand a run to the executor as ``run.external_id``, within the timeout.

        It may be handed over more than once, by a process that died before it could say so. The
        job gets the ``run_id`` as its only argument.

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

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return system checks. Only ``manage.py check --deploy`` may connect to the executor.

        Args:
            kwargs: As Django gives them to system checks; ``deploy`` says whether it is that.
        """
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

    def ping(self) -> None:
        """Reach the executor within the timeout, or raise anything. By default, do nothing."""
