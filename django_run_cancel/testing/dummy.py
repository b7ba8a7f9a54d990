"""``DummyBackend``: a backend for tests, which executes nothing and records all calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django_run_cancel.backends.base import BaseBackend, StopOutcome, StopRequest, TaskCall

if TYPE_CHECKING:
    from django_run_cancel.models import AbstractRun


class DummyBackend(BaseBackend):
    """Records calls, and returns an outcome that the test sets.

    Attributes:
        dispatched: The external ids passed to ``dispatch()``, in order.
        calls: The TaskCall of each dispatch.
        stopped: Pairs of a request passed to ``stop()`` and its ``force``, in order.
        outcome: Outcome that ``stop()`` returns for each request. If it is an exception,
            ``dispatch()`` raises it, too.
    """

    can_stop_running = True
    can_force = True

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        super().__init__(alias, options)
        self.clear()

    def clear(self) -> None:
        """Delete all recorded calls, and reset ``outcome`` to ``TOLD``."""
        self.dispatched: list[str] = []
        self.calls: list[TaskCall] = []
        self.stopped: list[tuple[StopRequest, bool]] = []
        self.outcome: StopOutcome | Exception = StopOutcome.TOLD

    def check_call(self, call: TaskCall) -> None:
        """Accept any call."""

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Record the run."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        self.dispatched.append(run.external_id)
        self.calls.append(call)

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Record the requests."""
        self.stopped += [(request, force) for request in requests]
        return {request.external_id: self.outcome for request in requests}
