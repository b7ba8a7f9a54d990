"""Dramatiq with dramatiq-abort: messages are skipped, running actors get an exception."""

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
    """Sends runs to an actor, and asks ``Abortable`` to skip or to interrupt their messages.

    The id of the message is the external id.

    Options:
        ACTOR: Dotted path of the actor of runs that are dispatched without one. Without it, the
            broker is that of ``dramatiq.get_broker()``.
        ABORT_AFTER: Seconds that running code has to leave at a checkpoint, before ``Abort`` is
            raised in it; 2 by default, and none when forced.
        ABORT_TTL: Seconds that Redis keeps a request, for workers that are away; 7 days by default.
    """

    can_stop_running = True
    optional_options = frozenset({"ABORT_AFTER", "ABORT_TTL"})
    task_option = "ACTOR"
    dispatch_options = None

    @property
    def broker(self) -> Broker:
        """The broker: that of the actor in the options, or the one of the project."""
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
        """Check that the broker has ``Abortable`` and, for a deployment, that both answer."""
        messages = super().check(**kwargs)
        if any(found.is_serious() for found in messages):
            return messages
        try:
            self._abortable  # noqa: B018
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
                    # RabbitMQ: each thread has a connection of its own, and this one ends.
                    del broker.connection  # type: ignore[attr-defined]

        call_bounded(call, self.alias, self.timeout)

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008
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
        """Leave a request for each message in the Redis of ``Abortable``, in one round trip."""
        after = 0 if force else self.options.get("ABORT_AFTER", 2)
        modes: dict[AbortMode, dict[str, int]] = {
            AbortMode.CANCEL: {},
            AbortMode.ABORT: {"abort_timeout": int(after * 1000)},
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
        """Ask the Redis of ``Abortable``, and connect to RabbitMQ where that is the broker."""
        self._call(lambda: self._abortable.backend.poll("ping"))
        self._call(lambda: getattr(self.broker, "connection", None))
