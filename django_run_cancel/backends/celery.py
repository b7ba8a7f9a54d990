"""Celery backend: revokes tasks, and with force kills the processes that execute them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from celery import Celery
from django.core.checks import CheckMessage, Warning
from django.utils.functional import cached_property
from django.utils.module_loading import import_string
from kombu.connection import Connection
from kombu.messaging import Producer

from django_run_cancel.backends.base import (
    DISPATCHED,
    BackendError,
    BaseBackend,
    StopOutcome,
    StopRequest,
    TaskCall,
)
from django_run_cancel.exceptions import UnknownTask
from django_run_cancel.models import AbstractRun

SIGNALLED = {"prefork", "processes", "gevent", "eventlet"}
"""Pools whose workers can interrupt a task: with a signal, or a greenlet with an exception."""

KILLABLE = {"prefork", "processes"}


class _ProducesOnce(Producer):
    """Publishes without retries. The mailbox asks for retries, which would never end."""

    def publish(self, *args: Any, **options: Any) -> Any:
        return super().publish(*args, **{**options, "retry": False})


@contextmanager
def _acquire(producer: None = None, channel: Any = None) -> Iterator[Producer]:
    yield _ProducesOnce(channel, auto_declare=False)


class CeleryBackend(BaseBackend):
    """Sends a task for each run, and revokes tasks.

    The external id is the id of the task. Workers store revocations in memory only, so the delivery
    worker repeats them until the run has stopped.

    Options:
        APP: Dotted path of the Celery app.
        TASK: Name of the default task.
        QUEUE: Queue of the task; by default the one to which the app routes it.
        POOL: The pool of the workers; by default ``worker_pool`` of the app, which is ``prefork``.
        SIGNAL: Signal for running tasks in a request without force, such as ``"SIGTERM"``. By
            default none, so that tasks end at their checkpoints or are killed after the grace. A
            worker sends a signal to a task once and then forgets the task: one that survives the
            signal cannot be killed later.
    """

    keeps_requests = False
    required_options = frozenset({"APP"})
    optional_options = frozenset({"QUEUE", "POOL", "SIGNAL"})
    task_option = "TASK"
    dispatch_options = frozenset(
        {
            "compression",
            "countdown",
            "delivery_mode",
            "eta",
            "exchange",
            "expires",
            "headers",
            "ignore_result",
            "priority",
            "queue",
            "routing_key",
            "serializer",
            "shadow",
            "soft_time_limit",
            "time_limit",
        }
    )

    @cached_property
    def app(self) -> Celery:
        """The Celery app."""
        return import_string(self.options["APP"])

    @cached_property
    def pool(self) -> str:
        """Name of the pool that the workers use."""
        return str(self.options.get("POOL", self.app.conf.worker_pool))

    @property
    def can_stop_running(self) -> bool:  # type: ignore[override]  # a property here
        """Whether ``SIGNAL`` is set, and the pool can send it."""
        return self.pool in SIGNALLED and "SIGNAL" in self.options

    @property
    def can_force(self) -> bool:  # type: ignore[override]  # a property here
        """Whether the pool executes tasks in processes, which can be killed."""
        return self.pool in KILLABLE

    def get_task(self, name: str) -> Any:
        """Return the task with this name. Imports the app's task modules if it is unknown."""
        if name not in self.app.tasks:
            self.app.loader.import_default_modules()
        if name not in self.app.tasks:
            raise UnknownTask(self.alias, name)
        return self.app.tasks[name]

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check the pool and, with ``--deploy``, the connection to the broker."""
        messages = super().check(**kwargs)
        if not self.can_force:
            messages.append(
                Warning(
                    f"Backend {self.alias!r} cannot kill tasks: workers with the pool {self.pool} "
                    "have no process for each.",
                    hint="Let the code call checkpoint(), or use the pool prefork.",
                    id="django_run_cancel.W006",
                )
            )
        return messages

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        """Open a new connection: a dead one from a pool would block without a timeout."""
        transport: dict[str, Any] = {"max_retries": 0}
        if self.app.connection_for_write().transport.driver_type == "redis":
            transport |= {"socket_timeout": self.timeout, "socket_connect_timeout": self.timeout}
        else:
            transport |= {"read_timeout": self.timeout, "write_timeout": self.timeout}
            transport |= {"confirm_publish": True}
        with self.app.connection_for_write(
            connect_timeout=self.timeout, transport_options=transport
        ) as connection:
            yield connection

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Send the task."""
        options = {"queue": self.options["QUEUE"]} if "QUEUE" in self.options else {}
        headers = {**call.options.get("headers", {}), DISPATCHED: True}
        try:
            with self._connect() as connection:
                self.app.send_task(
                    call.task or self.options["TASK"],
                    [run.run_id, *call.args],
                    dict(call.kwargs),
                    task_id=run.external_id,
                    connection=connection,
                    retry=False,
                    **{**options, **call.options, "headers": headers},
                )
        except Exception as error:
            raise BackendError(f"Celery: {error}") from error

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Revoke tasks; first the running ones, in a separate call.

        A worker marks all ids of a call as revoked before it terminates the first task, so a long
        list would delay that.
        """
        external_ids = dict.fromkeys(request.external_id for request in requests)
        signalled = self.can_force if force else self.can_stop_running
        running = {request.external_id for request in requests if request.running}
        outcomes: dict[str, StopOutcome | Exception]
        outcomes = {
            external_id: StopOutcome.UNSUPPORTED
            if external_id in running and not signalled
            else StopOutcome.TOLD_ONCE
            for external_id in external_ids
        }
        if not outcomes:
            return outcomes
        try:
            with self._connect() as connection:
                if running and signalled:
                    outcomes.update(self._terminate(connection, sorted(running), force))
                if waiting := [i for i in external_ids if i not in running or not signalled]:
                    self._mailbox(connection).abcast("revoke", {"task_id": waiting})
        except Exception as error:  # noqa: BLE001 - any client, any broker
            return dict.fromkeys(external_ids, error)
        return outcomes

    def _terminate(
        self, connection: Connection, external_ids: list[str], force: bool
    ) -> dict[str, StopOutcome]:
        """Send a signal to running tasks; return ``STOPPED`` for those that a worker has killed.

        A worker also confirms the termination of a task that it has only reserved. That may be a
        redelivered message, whose first worker has lost its connection but still executes it. So
        the workers are queried first for the tasks that they execute.
        """
        arguments = {"task_id": external_ids, "terminate": True}
        if not force:
            arguments["signal"] = self.options["SIGNAL"]
            self._mailbox(connection).abcast("revoke", arguments)
            return {}
        wanted = set(external_ids)
        active: dict[str, set[str]] = {}
        killed: set[str] = set()

        def record_active(worker: str, answer: dict[str, Any]) -> bool:
            tasks = wanted.intersection(answer)
            active[worker] = {task for task in tasks if answer[task][0] == "active"}
            return wanted.issubset(chain.from_iterable(active.values()))

        def record_killed(worker: str, answer: dict[str, Any]) -> bool:
            _, _, tasks = answer.get("ok", "").partition("terminate: ")
            killed.update(active.get(worker, set()).intersection(tasks.split(", ")))
            return wanted == killed

        self._broadcast(connection, "query_task", {"ids": external_ids}, record_active)
        self._broadcast(connection, "revoke", {**arguments, "signal": "SIGKILL"}, record_killed)
        return dict.fromkeys(killed, StopOutcome.STOPPED)

    def _broadcast(
        self,
        connection: Connection,
        command: str,
        arguments: dict[str, Any],
        is_complete: Callable[[str, dict[str, Any]], bool],
    ) -> None:
        """Broadcast a command, and process answers until ``is_complete()`` or the timeout."""

        def on_reply(reply: dict[str, dict[str, Any]]) -> None:
            if any(is_complete(worker, answer) for worker, answer in reply.items()):
                raise TimeoutError  # makes the mailbox stop waiting for other workers

        mailbox = self._mailbox(connection)
        mailbox.multi_call(command, arguments, timeout=self.timeout, callback=on_reply)

    def _mailbox(self, connection: Connection) -> Any:
        mailbox = self.app.control.mailbox(connection)
        mailbox.producer_or_acquire = _acquire
        return mailbox

    def ping(self) -> None:
        """Connect to the broker."""
        with self._connect() as connection:
            connection.ensure_connection(max_retries=1)
