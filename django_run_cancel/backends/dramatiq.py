"""Dramatiq, with the middleware of dramatiq-abort, on Redis or RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error
from django.utils.functional import cached_property
from django.utils.module_loading import import_string
from dramatiq import Actor
from dramatiq_abort import Abort, Abortable, Event
from dramatiq_abort.middleware import AbortMode

from django_run_cancel.backends.base import BackendError, BaseBackend, StopOutcome, StopRequest
from django_run_cancel.backends.bounded import call_bounded
from django_run_cancel.exceptions import RunCancelError
from django_run_cancel.models import AbstractRun

NEVER_AGAIN = (RunCancelError, Abort)
"""For ``@dramatiq.actor(throws=NEVER_AGAIN)``: a refused or an aborted run is not tried again."""


class DramatiqBackend(BaseBackend):
    """Sends runs to an actor, and asks ``Abortable`` to skip or to interrupt their messages.

    The id of the message is the external id.

    Options:
        ACTOR: Dotted path of the actor; its only argument is the run id.
        ABORT_AFTER: Seconds that running code has to leave at a checkpoint, before ``Abort`` is
            raised in it; 2 by default, and none when forced.
        ABORT_TTL: Seconds that Redis keeps a request, for workers that are away; 7 days by default.
    """

    can_drop_queued = True
    can_stop_running = True
    stops_many = True
    required_options = frozenset({"ACTOR"})
    optional_options = frozenset({"ABORT_AFTER", "ABORT_TTL"})

    @cached_property
    def actor(self) -> Actor[Any, Any]:
        """The actor, which knows its broker."""
        actor: Actor[Any, Any] = import_string(self.options["ACTOR"])
        return actor

    @property
    def _abortable(self) -> Abortable:
        for middleware in self.actor.broker.middleware:
            if isinstance(middleware, Abortable):
                return middleware
        raise LookupError(f"The broker of {self.options['ACTOR']} lacks the middleware Abortable.")

    def _call(self, function: Callable[[], object]) -> None:
        broker = self.actor.broker

        def call() -> None:
            try:
                function()
            finally:
                if isinstance(getattr(type(broker), "connection", None), property):
                    # RabbitMQ: each thread has a connection of its own, and this one ends.
                    del broker.connection  # type: ignore[attr-defined]

        call_bounded(call, self.alias, self.timeout)

    def dispatch(self, run: AbstractRun) -> None:
        """Send the message."""
        message = self.actor.message(run.run_id).copy(message_id=run.external_id)
        try:
            self._call(lambda: self.actor.broker.enqueue(message))
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

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check that the broker has ``Abortable`` and, for a deployment, that both answer."""
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
        return super().check(**kwargs)

    def ping(self) -> None:
        """Ask the Redis of ``Abortable``, and connect to RabbitMQ where that is the broker."""
        self._call(lambda: self._abortable.backend.poll("ping"))
        self._call(lambda: getattr(self.actor.broker, "connection", None))
