"""A backend that runs nothing and remembers what it was told, for tests of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django_run_cancel.backends.base import BaseBackend, StopOutcome, StopRequest, TaskCall

if TYPE_CHECKING:
    from django_run_cancel.models import AbstractRun


class DummyBackend(BaseBackend):
    """Remembers calls, and answers as it is told to.

    Attributes:
        dispatched: The external ids that were dispatched, in order.
        calls: The task, arguments and options that each of them was dispatched with.
        stopped: The requests that came to ``stop``, in order, each with ``force``.
        outcome: What ``stop`` answers for each request, and, if it is an exception, what
            ``dispatch`` raises.
    """

    can_stop_running = True
    can_force = True

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        super().__init__(alias, options)
        self.clear()

    def clear(self) -> None:
        """Forget all calls, and answer ``TOLD`` again."""
        self.dispatched: list[str] = []
        self.calls: list[TaskCall] = []
        self.stopped: list[tuple[StopRequest, bool]] = []
        self.outcome: StopOutcome | Exception = StopOutcome.TOLD

    def check_call(self, call: TaskCall) -> None:
        """Accept any call."""

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008
        """Remember the run."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        self.dispatched.append(run.external_id)
        self.calls.append(call)

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Remember the requests."""
        self.stopped += [(request, force) for request in requests]
        return {request.external_id: self.outcome for request in requests}
