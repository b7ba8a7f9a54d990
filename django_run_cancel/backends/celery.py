"""Celery, on Redis or RabbitMQ: tasks are revoked, and by force killed with their process."""

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
"""Pools whose workers can interrupt a task; in the last two it is an exception at a switch."""

KILLABLE = {"prefork", "processes"}


class _ProducesOnce(Producer):
    """Publishes or fails. The mailbox asks for retries, which would have no end."""

    def publish(self, *args: Any, **options: Any) -> Any:
        return super().publish(*args, **{**options, "retry": False})


@contextmanager
def _acquire(producer: None = None, channel: Any = None) -> Iterator[Producer]:
    yield _ProducesOnce(channel, auto_declare=False)


class CeleryBackend(BaseBackend):
    """Sends runs to a task, and revokes them.

    The id of the task is the external id. Workers keep a revocation in memory only, so it is
    repeated until the run has stopped.

    Options:
        APP: Dotted path of the Celery app.
        TASK: Name of the task of runs that are dispatched without one.
        QUEUE: Where to send it; by default where the app routes it.
        POOL: The pool of the workers; by default ``worker_pool`` of the app, which is ``prefork``.
        SIGNAL: What running tasks are sent at once, such as ``"SIGTERM"``. By default nothing:
            they are left to their checkpoints, until they are killed. A worker signals a task once
            and then forgets it, so that one which survives the signal cannot be killed any more.
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
        """The pool that the workers use."""
        return str(self.options.get("POOL", self.app.conf.worker_pool))

    @property
    def can_stop_running(self) -> bool:  # type: ignore[override]
        """Whether tasks are signalled before they are killed, and the pool can do it."""
        return self.pool in SIGNALLED and "SIGNAL" in self.options

    @property
    def can_force(self) -> bool:  # type: ignore[override]
        """Whether the pool runs each task in a process that can be killed."""
        return self.pool in KILLABLE

    def get_task(self, name: str) -> Any:
        """Return the task with this name, importing the tasks of the app if need be."""
        if name not in self.app.tasks:
            self.app.loader.import_default_modules()
        if name not in self.app.tasks:
            raise UnknownTask(self.alias, name)
        return self.app.tasks[name]

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check the pool and, for a deployment, that the broker answers."""
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
        """Connect anew: what is left in a pool may be dead, and then waits without an end."""
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

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008
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
        """Revoke tasks; running ones in a call of their own, and first.

        A worker marks every id of a call before it terminates any, and that takes it a while.
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
        """Signal running tasks; those that a worker says it killed are stopped.

        A worker says so too of a task that it has only reserved: of one that was delivered again,
        because the worker which runs it has lost its connection. So it is asked before.
        """
        arguments = {"task_id": external_ids, "terminate": True}
        if not force:
            arguments["signal"] = self.options["SIGNAL"]
            self._mailbox(connection).abcast("revoke", arguments)
            return {}
        wanted = set(external_ids)
        active: dict[str, set[str]] = {}
        killed: set[str] = set()

        def note_active(worker: str, answer: dict[str, Any]) -> bool:
            tasks = wanted.intersection(answer)
            active[worker] = {task for task in tasks if answer[task][0] == "active"}
            return wanted.issubset(chain.from_iterable(active.values()))

        def note_killed(worker: str, answer: dict[str, Any]) -> bool:
            _, _, tasks = answer.get("ok", "").partition("terminate: ")
            killed.update(active.get(worker, set()).intersection(tasks.split(", ")))
            return wanted == killed

        self._ask(connection, "query_task", {"ids": external_ids}, note_active)
        self._ask(connection, "revoke", {**arguments, "signal": "SIGKILL"}, note_killed)
        return dict.fromkeys(killed, StopOutcome.STOPPED)

    def _ask(
        self,
        connection: Connection,
        command: str,
        arguments: dict[str, Any],
        note: Callable[[str, dict[str, Any]], bool],
    ) -> None:
        """Tell all workers, and note what each answers until that is enough, or for the timeout."""

        def hear(reply: dict[str, dict[str, Any]]) -> None:
            if any(note(worker, answer) for worker, answer in reply.items()):
                raise TimeoutError  # the mailbox then waits for no other worker

        mailbox = self._mailbox(connection)
        mailbox.multi_call(command, arguments, timeout=self.timeout, callback=hear)

    def _mailbox(self, connection: Connection) -> Any:
        mailbox = self.app.control.mailbox(connection)
        mailbox.producer_or_acquire = _acquire
        return mailbox

    def ping(self) -> None:
        """Connect to the broker."""
        with self._connect() as connection:
            connection.ensure_connection(max_retries=1)
