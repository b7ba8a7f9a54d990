"""Dramatiq: messages become runs, with ``broker.add_middleware(CancellableMiddleware())``.

It may stand before or after ``Abortable`` of dramatiq-abort, which it does not need.
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
"""Option of actors and messages: the run goes on when the one that publishes it is cancelled."""

PARENT = "run_cancel_parent"
"""Option of messages that have been published: the id of the run above, or blank."""

ENQUEUED_AT = "run_cancel_enqueued_at"
"""Option of messages that have been enqueued: when, in milliseconds since 1970."""

ENQUEUED_AGAIN = "run_cancel_enqueued_again"
"""Option of messages that code of the host has enqueued more than once."""

DELAYED = "run_cancel_delayed"
"""Option of messages that a worker keeps until their time has come. Then it enqueues them."""

NOT_RETRIED = (RunCancelError, *ABORTS)
"""For ``@dramatiq.actor(throws=NOT_RETRIED)``: a refused or an aborted run is not tried again."""


class MessageCancelled(RunCancelled):
    """The run of this message has been cancelled: Dramatiq does not try it again.

    All actors have it among their ``throws``.
    """


@dataclass
class Processing:
    """One message while a worker processes it.

    Attributes:
        message: The message.
        is_started: Whether its actor has been called.
        has_returned: Whether its actor has returned or raised.
        error: What the actor has raised, if Dramatiq may try the message again.
        is_tried_again: Whether Dramatiq does so.
    """

    message: MessageProxy
    is_started: bool = False
    has_returned: bool = False
    error: BaseException | None = None
    is_tried_again: bool = False


_processing: ContextVar[Processing | None] = ContextVar("run_cancel_processing", default=None)
_published: ContextVar[Any] = ContextVar("run_cancel_published", default=None)
_enqueued: ContextVar[Any] = ContextVar("run_cancel_enqueued", default=None)


# What publishes a message


def _mark_published(broker: Broker, message: Message[Any]) -> None:
    """Write into a message, and those after it in its pipeline, which run is above each."""
    actor = broker.actors.get(message.actor_name)
    is_detached = message.options.get(DETACHED, actor and actor.options.get(DETACHED))
    run = None if is_detached else current_run()
    message.options[PARENT] = run.run_id if run is not None else ""
    parent_id = message.message_id
    for link in _links(message):
        link["options"][PARENT] = parent_id
        parent_id = link["message_id"]


def _mark_enqueued(message: Message[Any]) -> None:
    """Write into a message when it is enqueued, and whether it has been before."""
    if message is _enqueued.get():
        return  # the broker could not be reached, and is asked again
    _enqueued.set(message)
    if ENQUEUED_AT in message.options:
        message.options[ENQUEUED_AGAIN] = True
    message.options[ENQUEUED_AT] = current_millis()


def _links(message: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the messages that follow in a pipeline, if they are tracked."""
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


# What processes it, and how it ends


def _call_actor(
    actor: Actor[..., Any], function: Callable[..., Any], /, *args: Any, **kw: Any
) -> Any:
    """Call the function of an actor, as the run of the message if it is the worker that calls."""
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
    """Tell whether the run is that of the same message when it was enqueued before.

    The host wants both to be processed: this one is, without a run.

    Raises:
        RunCancelled: The run has been cancelled, and the host wants neither.
    """
    if not message.options.get(ENQUEUED_AGAIN):
        return False
    status = run_rows(run_id=message.message_id).values_list("status", flat=True).first()
    if status == RunStatus.CANCELLED:
        raise RunCancelled(message.message_id)
    if status is None:
        del message.options[ENQUEUED_AGAIN]  # the next try belongs to the run, too
    return status is not None


def _start(message: MessageProxy, stack: ExitStack) -> Execution | None:
    """Start the run of a message; return None if the message is processed without it."""
    try:
        # Whatever fails may be tried again: the run is queued until Dramatiq has decided.
        return stack.enter_context(executing(_task(message), requeue_on=BaseException))
    except TransitionNotAllowed as refused:
        # A dead letter, or a message that the host has enqueued again after the run had ended.
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
    """Let the run of a message that is not tried again fail, with those after it."""
    processing = _processing.get()
    _processing.set(None)
    if processing is None:  # rejected by the thread that fetches messages, or skipped before
        error: Any = ActorNotFound(message.actor_name)  # type: ignore[no-untyped-call]
    else:
        error = None if processing.is_tried_again else processing.error
    if error is not None:
        fail_unpublished(message.message_id, *_link_ids(message), error=error)


# What a project names


class CancellableMiddleware(Middleware):
    """Makes the messages of a broker runs of their own.

    Actors keep their signature, arguments, result, retries, limits, priority and delays.
    ``@dramatiq.actor(run_cancel_detached=True)`` lets a run go on when the run that has published
    it is cancelled.
    """

    @property
    def actor_options(self) -> set[str]:
        return {DETACHED}

    def after_declare_actor(self, broker: Broker, actor: Actor[..., Any] | str) -> None:
        if isinstance(actor, str):  # Dramatiq 1, of actors that were declared before
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
        # Now, as Dramatiq calls nothing if the broker cannot be reached.
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
        """Cancel the run of a message that Abortable, an age limit or its actor has skipped."""
        if not _is_tracked(message):
            return
        if run_rows(run_id=message.message_id, status__in=WAITING).exists():
            reason = "Dramatiq skipped the message."
            cancel_runs([message.message_id], requested_by="dramatiq", reason=reason)

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        if _processing.get() is not None:
            _end(message)
            # Before the acknowledgement: tests with a StubBroker go on after it.
            close_old_connections()

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        if _is_tracked(message):
            _end(message)
            close_old_connections()
