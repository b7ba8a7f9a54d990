"""Dramatiq integration: makes messages runs; ``broker.add_middleware(CancellableMiddleware())``.

It works without dramatiq-abort, and before or after its middleware ``Abortable``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any

from django.db import close_old_connections
from dramatiq import Actor, Broker, Message, MessageProxy
from dramatiq.common import current_millis
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import Interrupt, Middleware, SkipMessage

from django_run_cancel.backends.base import DISPATCHED
from django_run_cancel.cancellation.service import cancel_runs
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.exceptions import (
    RunCancelError,
    RunCancelled,
    RunInProgress,
    TransitionNotAllowed,
)
from django_run_cancel.execution import Execution, current_run
from django_run_cancel.integrations.redelivery import has_ended_before
from django_run_cancel.integrations.tracking import (
    TaskMessage,
    backend_alias,
    executing,
    fail_unpublished,
    is_tracked,
    record_published,
)
from django_run_cancel.models import run_rows
from django_run_cancel.states import WAITING, RunStatus

try:
    from dramatiq_abort import Abort
except ImportError:
    ABORTS: tuple[type[BaseException], ...] = ()
else:
    ABORTS = (Abort,)

BACKEND = "django_run_cancel.backends.dramatiq.DramatiqBackend"

DETACHED = "run_cancel_detached"
"""Option of actors and messages: the run continues when the publishing run is cancelled."""

PARENT = "run_cancel_parent"
"""Option of published messages: id of the parent run, or blank."""

ENQUEUED_AT = "run_cancel_enqueued_at"
"""Option of enqueued messages: time of enqueueing, in milliseconds since 1970."""

ENQUEUED_AGAIN = "run_cancel_enqueued_again"
"""Option of messages that the host's code has enqueued more than once."""

DELAYED = "run_cancel_delayed"
"""Option of messages with a delay that a worker holds in memory; it enqueues them when due."""

NOT_RETRIED = (RunCancelError, *ABORTS)
"""For ``@dramatiq.actor(throws=NOT_RETRIED)``: exceptions that prevent a retry."""


class MessageCancelled(RunCancelled):
    """The run of this message has been cancelled.

    The integration adds it to the ``throws`` of all actors, so that Dramatiq does not retry.
    """


@dataclass
class Processing:
    """State of the message that a worker thread is processing.

    Attributes:
        message: The message.
        is_started: Whether its actor has been called.
        has_returned: Whether its actor has returned or raised.
        error: The exception of the actor, if Dramatiq may retry the message.
        is_tried_again: Whether Dramatiq has enqueued a retry.
    """

    message: MessageProxy
    is_started: bool = False
    has_returned: bool = False
    error: BaseException | None = None
    is_tried_again: bool = False


_processing: ContextVar[Processing | None] = ContextVar("run_cancel_processing", default=None)
_published: ContextVar[Any] = ContextVar("run_cancel_published", default=None)
_enqueued: ContextVar[Any] = ContextVar("run_cancel_enqueued", default=None)


# Publishing a message


def _mark_published(broker: Broker, message: Message[Any]) -> None:
    """Set the option ``PARENT`` of a message and of the following messages in its pipeline."""
    actor = broker.actors.get(message.actor_name)
    is_detached = message.options.get(DETACHED, actor and actor.options.get(DETACHED))
    run = None if is_detached else current_run()
    message.options[PARENT] = run.run_id if run is not None else ""
    parent_id = message.message_id
    for link in _links(message):
        link["options"][PARENT] = parent_id
        parent_id = link["message_id"]


def _mark_enqueued(message: Message[Any]) -> None:
    """Set ``ENQUEUED_AT`` of a message, and ``ENQUEUED_AGAIN`` if it was enqueued before."""
    if message is _enqueued.get():
        return  # a retry after a connection error
    _enqueued.set(message)
    if ENQUEUED_AT in message.options:
        message.options[ENQUEUED_AGAIN] = True
    message.options[ENQUEUED_AT] = current_millis()


def _links(message: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the following messages of a pipeline, up to the first that is not tracked."""
    link = message.options.get("pipe_target")
    while link is not None and _is_tracked(Message(**link)):
        yield link
        link = link["options"].get("pipe_target")


def _link_ids(message: Any) -> list[str]:
    return [link["message_id"] for link in _links(message)]


def _is_tracked(message: Any) -> bool:
    is_dispatched = DISPATCHED in message.options
    return not is_dispatched and is_tracked(message.actor_name, message.message_id)


def _task(message: Any) -> TaskMessage:
    return TaskMessage(
        message.message_id,
        message.actor_name,
        message.args,
        message.kwargs,
        backend_alias(BACKEND),
        message.options.get(PARENT, ""),
    )


# Processing a message, and its end


def _call_actor(
    actor: Actor[..., Any], function: Callable[..., Any], /, *args: Any, **kw: Any
) -> Any:
    """Call the function of an actor; if a worker calls it for a message, as the message's run."""
    processing = _processing.get()
    if (
        processing is None
        or processing.is_started
        or processing.message.actor_name != actor.actor_name
    ):
        return function(*args, **kw)
    processing.is_started = True
    try:
        return _execute(processing.message, partial(function, *args, **kw))
    except (SkipMessage, MessageCancelled):
        raise
    except BaseException as error:
        processing.error = error
        raise
    finally:
        processing.has_returned = True


def _execute(message: MessageProxy, call: Callable[[], Any]) -> Any:
    run: Execution | None = None
    try:
        with ExitStack() as stack:
            if not _is_enqueued_again(message):
                run = _start(message, stack)
            return call()
    except (RunCancelled, RunInProgress, TransitionNotAllowed) as refused:
        if refused.run_id != message.message_id:
            raise  # the actor works on other runs, too
        if not isinstance(refused, RunCancelled):
            message.options["store_results"] = False  # the other execution stores its own
        elif run is None:
            message.fail()
        else:
            raise _cancelled(message) from refused
        raise SkipMessage(str(refused)) from refused
    except Interrupt as interrupt:  # of Abortable, say
        if run is None or not run.cancelled:
            raise
        raise _cancelled(message) from interrupt


def _is_enqueued_again(message: MessageProxy) -> bool:
    """Tell whether the host has enqueued this message before, so that the run exists already.

    The second message is processed without a run.

    Raises:
        RunCancelled: The run has been cancelled, which also applies to the second message.
    """
    if not message.options.get(ENQUEUED_AGAIN):
        return False
    status = run_rows(run_id=message.message_id).values_list("status", flat=True).first()
    if status == RunStatus.CANCELLED:
        raise RunCancelled(message.message_id)
    if status is None:
        del message.options[ENQUEUED_AGAIN]  # retries of this message belong to the run
    return status is not None


def _start(message: MessageProxy, stack: ExitStack) -> Execution | None:
    """Start the run of a message; return None if the message must be processed without a run."""
    try:
        # Any error may be retried: the run stays queued until Dramatiq has decided.
        return stack.enter_context(executing(_task(message), requeue_on=BaseException))
    except TransitionNotAllowed as refused:
        # A dead letter, or a message that the host has enqueued again after the end of the run.
        if refused.current == RunStatus.FAILED or _is_enqueued_after_end(message):
            return None
        raise


def _is_enqueued_after_end(message: MessageProxy) -> bool:
    enqueued_at = message.options.get(ENQUEUED_AT)
    return enqueued_at is not None and has_ended_before(
        message.message_id, datetime.fromtimestamp(enqueued_at / 1000, UTC)
    )


def _cancelled(message: MessageProxy) -> MessageCancelled:
    message.fail()
    return MessageCancelled(message.message_id)


def _end(message: MessageProxy) -> None:
    """Set the runs of a failed message and of its pipeline to failed, unless it is retried."""
    processing = _processing.get()
    _processing.set(None)
    if processing is None:  # rejected by the consumer thread, or skipped before processing
        error: Any = ActorNotFound(message.actor_name)  # type: ignore[no-untyped-call]  # not typed there
    else:
        error = None if processing.is_tried_again else processing.error
    if error is not None:
        fail_unpublished(message.message_id, *_link_ids(message), error=error)


# Public names for a project


class CancellableMiddleware(Middleware):
    """Middleware that makes each message of a broker a run.

    Actors keep their signature, arguments, result, retries, limits, priority and delays. With
    ``@dramatiq.actor(run_cancel_detached=True)``, a run continues when the run that published it is
    cancelled.
    """

    @property
    def actor_options(self) -> set[str]:
        return {DETACHED}

    def after_declare_actor(self, broker: Broker, actor: Actor[..., Any] | str) -> None:
        if isinstance(actor, str):  # Dramatiq 1, for actors declared before the middleware
            actor = broker.get_actor(actor)
        actor.fn = wraps(actor.fn)(partial(_call_actor, actor, actor.fn))
        throws = actor.options.get("throws") or ()
        throws = throws if isinstance(throws, tuple) else (throws,)
        actor.options["throws"] = (*throws, MessageCancelled)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        is_due = message.options.pop(DELAYED, False)
        if not _is_tracked(message) or (is_due and ENQUEUED_AT in message.options):
            return
        processing = _processing.get()
        if (
            processing is not None
            and processing.message.message_id == message.message_id
            and (processing.has_returned or not processing.is_started)
        ):
            processing.is_tried_again = True
            return
        _mark_enqueued(message)
        if PARENT not in message.options:
            _mark_published(broker, message)
            _published.set(message)

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if _enqueued.get() is message:
            _enqueued.set(None)
        # Create runs only now: without a connection to the broker, this method is not called.
        if _published.get() is message:
            _published.set(None)
            links = (_task(Message(**link)) for link in _links(message))
            record_published(_task(message), *links)

    def before_delay_message(self, broker: Broker, message: MessageProxy) -> None:
        message.options[DELAYED] = True

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        if _is_tracked(message):
            close_old_connections()
            _processing.set(Processing(message))

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Cancel the run of a message skipped by Abortable, an age limit or its actor."""
        if not _is_tracked(message):
            return
        if run_rows(run_id=message.message_id).filter(is_one_of("status", WAITING)).exists():
            reason = "Dramatiq skipped the message."
            cancel_runs([message.message_id], requested_by="dramatiq", reason=reason)

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        if _processing.get() is not None:
            _end(message)
            # Before the acknowledgement, after which a test with a StubBroker continues.
            close_old_connections()

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        if _is_tracked(message):
            _end(message)
            close_old_connections()
