"""Dramatiq backend, with dramatiq-abort: skips waiting messages, raises Abort in running actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error
from dramatiq import Actor, Broker, get_broker
from dramatiq_abort import Abortable, Event
from dramatiq_abort.middleware import AbortMode

from django_run_cancel.backends.base import (
    DISPATCHED,
    BackendError,
    BaseBackend,
    StopOutcome,
    StopRequest,
    TaskCall,
)
from django_run_cancel.backends.bounded import call_bounded
from django_run_cancel.exceptions import UnknownTask
from django_run_cancel.models import AbstractRun


class DramatiqBackend(BaseBackend):
    """Sends a message for each run, and asks ``Abortable`` to skip or interrupt messages.

    The external id is the id of the message.

    Options:
        ACTOR: Dotted path of the default actor. Without it, the broker is that of
            ``dramatiq.get_broker()``.
        ABORT_AFTER: Seconds between a request and the exception ``Abort`` in running code, for a
            checkpoint to end it first; 2 by default, 0 with force.
        ABORT_TTL: Seconds for which Redis stores a request for workers that are down; by default 7
            days.
    """

    can_stop_running = True
    optional_options = frozenset({"ABORT_AFTER", "ABORT_TTL"})
    task_option = "ACTOR"
    dispatch_options = None

    @property
    def broker(self) -> Broker:
        """The broker of the default actor, or of the project."""
        if "ACTOR" not in self.options:
            return get_broker()
        return self.get_task(self.options["ACTOR"]).broker

    def get_task(self, name: str) -> Actor[Any, Any]:
        """Return the actor with this dotted path."""
        actor = super().get_task(name)
        if not isinstance(actor, Actor):
            raise UnknownTask(self.alias, name)
        return actor

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check that the broker has ``Abortable`` and, with ``--deploy``, both connections."""
        messages = super().check(**kwargs)
        if any(message.is_serious() for message in messages):
            return messages
        try:
            self._abortable  # noqa: B018  # raises if it is missing
        except LookupError as error:
            return [
                Error(
                    str(error),
                    hint="broker.add_middleware(Abortable(backend=RedisBackend.from_url(…)))",
                    id="django_run_cancel.E010",
                )
            ]
        return messages

    @property
    def _abortable(self) -> Abortable:
        for middleware in self.broker.middleware:
            if isinstance(middleware, Abortable):
                return middleware
        raise LookupError(f"The broker of {self.alias!r} lacks the middleware Abortable.")

    def _call(self, function: Callable[[], object]) -> None:
        broker = self.broker

        def call() -> None:
            try:
                function()
            finally:
                if isinstance(getattr(type(broker), "connection", None), property):
                    # RabbitMQ: close the connection of this thread, which is about to end.
                    del broker.connection  # type: ignore[attr-defined]

        call_bounded(call, self.alias, self.timeout)

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Send the message."""
        actor = self.get_task(call.task or self.options["ACTOR"])
        message = actor.message_with_options(
            args=(run.run_id, *call.args), kwargs=dict(call.kwargs), **call.options
        ).copy(message_id=run.external_id, options={DISPATCHED: True})
        delay = message.options.pop("delay", None)
        try:
            self._call(lambda: actor.broker.enqueue(message, delay=delay))
        except Exception as error:
            raise BackendError(f"Dramatiq: {error}") from error

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Store a request for each message in the Redis of ``Abortable``, in one round trip."""
        abort_after = 0 if force else self.options.get("ABORT_AFTER", 2)
        modes: dict[AbortMode, dict[str, int]] = {
            AbortMode.CANCEL: {},
            AbortMode.ABORT: {"abort_timeout": int(abort_after * 1000)},
        }
        ids = dict.fromkeys(request.external_id for request in requests)
        events = [
            Event(Abortable.id_to_key(external_id, mode), arguments)
            for external_id in ids
            for mode, arguments in modes.items()
        ]
        ttl = int(self.options.get("ABORT_TTL", 7 * 24 * 3600) * 1000)
        outcome: StopOutcome | Exception = StopOutcome.TOLD
        try:
            self._call(lambda: self._abortable.backend.notify(events, ttl=ttl))
        except Exception as error:  # noqa: BLE001 - of any client
            outcome = error
        return dict.fromkeys(ids, outcome)

    def ping(self) -> None:
        """Query the Redis of ``Abortable``, and connect to the broker if it is RabbitMQ."""
        self._call(lambda: self._abortable.backend.poll("ping"))
        self._call(lambda: getattr(self.broker, "connection", None))
