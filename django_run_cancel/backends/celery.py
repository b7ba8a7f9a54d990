"""Celery, on Redis or RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Retry
from django.core.checks import CheckMessage, Warning
from django.utils.functional import cached_property
from django.utils.module_loading import import_string
from kombu.connection import Connection
from kombu.messaging import Producer

from django_run_cancel.backends.base import BackendError, BaseBackend, StopOutcome, StopRequest
from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.models import AbstractRun
from django_run_cancel.worker import Execution, execution

SIGNALLED = {"prefork", "processes", "gevent", "eventlet"}
"""Pools whose workers can interrupt a task; in the last two it is an exception at a switch."""

KILLABLE = {"prefork", "processes"}


class RunTask(Task):  # type: ignore[misc]
    """Base of tasks that work on a run: ``@app.task(base=RunTask)``.

    The task is called with the run id, and its function gets the execution instead. A retry leaves
    the run ``queued``; a run that is cancelled or being worked on already ends the task quietly.
    """

    abstract = True

    def __call__(self, run_id: str, *args: Any, **kwargs: Any) -> Any:
        """Execute the run.

        Raises:
            Ignore: The run has been cancelled, or another worker is at it.
        """
        try:
            with execution(run_id, requeue_on=(Retry,)) as run:
                request = self.request
                if request.called_directly or getattr(request, "run_execution", None) is not None:
                    # As by a test, or by a task that calls itself: it gets a request of its own.
                    return super().__call__(run, *args, **kwargs)
                request.run_execution, request._protected = run, 1
                return self.run(run, *args, **kwargs)
        except (RunCancelled, RunInProgress) as refused:
            raise Ignore(str(refused)) from refused

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Leave the run queued, and only then send the task once more: others may be quick.

        Raises:
            RunCancelled: The run has been cancelled: nothing is sent.
            Retry: As Celery does; and what else it raises if the tries are used up, say.
        """
        run: Execution | None = getattr(self.request, "run_execution", None)
        if run is None or not run.hand_back():  # called directly, say, or in a transaction
            return super().retry(*args, **kwargs)
        try:
            return super().retry(*args, **kwargs)
        except Retry:
            raise
        except BaseException:
            run.take_back()  # nothing has been sent
            raise


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
        TASK: Name of the task; its only argument is the run id.
        QUEUE: Where to send it; by default where the app routes it.
        POOL: The pool of the workers; by default ``worker_pool`` of the app, which is ``prefork``.
        SIGNAL: What running tasks are sent at once, such as ``"SIGTERM"``. By default nothing:
            they are left to their checkpoints, until they are killed. A worker signals a task once
            and then forgets it, so that one which survives the signal cannot be killed any more.
    """

    can_drop_queued = True
    stops_many = True
    keeps_requests = False
    required_options = frozenset({"APP", "TASK"})
    optional_options = frozenset({"QUEUE", "POOL", "SIGNAL"})

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

    def dispatch(self, run: AbstractRun) -> None:
        """Send the task."""
        queue = {"queue": self.options["QUEUE"]} if "QUEUE" in self.options else {}
        try:
            with self._connect() as connection:
                self.app.send_task(
                    self.options["TASK"],
                    [run.run_id],
                    task_id=run.external_id,
                    connection=connection,
                    retry=False,
                    **queue,
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

    def ping(self) -> None:
        """Connect to the broker."""
        with self._connect() as connection:
            connection.ensure_connection(max_retries=1)
