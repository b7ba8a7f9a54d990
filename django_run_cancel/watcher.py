"""The one thread of a process that asks the database about the runs which are executed in it.

It has a connection of its own: inside a transaction, the one of the running code can go on seeing
the run as it was when the transaction began.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from django.db import connections
from django.utils import timezone

from django_run_cancel import sql
from django_run_cancel.conf import settings
from django_run_cancel.models import AbstractRun, run_rows
from django_run_cancel.states import RunStatus

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """What the watcher reads of a run."""

    pk: Any
    status: str
    execution_id: UUID | None
    cancellation: int | None


class Watched(Protocol):
    """An execution, as the watcher knows it.

    Attributes:
        run: The run.
        execution_id: What its row has while this execution holds it.
        alive: Whether its code has been alive since the last heartbeat was written.
        beat_at: When that was, on the monotonic clock.
    """

    alive: bool
    beat_at: float

    @property
    def run(self) -> AbstractRun:
        """See above."""

    @property
    def execution_id(self) -> UUID | None:
        """See above."""

    def tick(self) -> None:
        """Take note of each poll, before it."""

    def seen(self, row: Any) -> None:
        """Take note of what a poll found, a ``Row``."""

    def forked(self) -> None:
        """Take note that this is a forked process, where nothing is watched any more."""


class Watcher:
    """Polls while there is something to watch; then its thread ends and disconnects."""

    def __init__(self) -> None:
        self.watched: dict[int, Watched] = {}
        # Entered once more by an abandoned generator that is collected inside of it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._at_once = False
        self._away = False
        self._listening: Any = None
        self._deaf: Any = None

    def add(self, execution: Watched) -> None:
        """Watch an execution, from another thread.

        Raises:
            OSError: There are no descriptors left for it.
            RuntimeError: There are no threads left for it.
        """
        execution.beat_at = time.monotonic()  # starting the run has written one
        with self._lock:
            if self._thread is None:
                self._thread = self._start()
            self.watched[id(execution)] = execution

    def _start(self) -> threading.Thread:
        self._bell, ear = socket.socketpair()
        self._bell.setblocking(False)
        thread = threading.Thread(
            target=self._watch, args=[self._bell, ear], name="run_cancel", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._bell.close()
            ear.close()
            raise
        return thread

    def remove(self, execution: Watched) -> None:
        """Watch it no longer."""
        with self._lock:
            if self.watched.pop(id(execution), None) is not None and not self.watched:
                with suppress(OSError):  # or else the next poll ends the thread
                    self._bell.send(b".")

    def _watch(self, bell: socket.socket, ear: socket.socket) -> None:
        connection = connections[run_rows().db]
        self._at_once = settings.LISTEN  # only a poll connects, and then it can listen
        with bell, ear:
            while True:
                self._wait(connection, ear)
                with self._lock:
                    executions = list(self.watched.values())
                    if not executions:
                        self._thread = None
                        break
                self._poll(connection, executions)
            self._disconnect(connection)

    def is_current_thread(self) -> bool:
        """Tell whether it is the thread of this watcher that asks."""
        return threading.current_thread() is self._thread

    def _poll(self, connection: Any, executions: list[Watched]) -> None:
        try:
            connection.ensure_connection()
            self._listen(connection)
            _look(executions)
            _beat(executions)
        except Exception:
            # Nothing may end this thread. What happens now is seen at a later poll.
            if not self._away:
                logger.exception("Cannot ask whether runs have been cancelled; trying on.")
            self._away = True
            self._disconnect(connection)
        else:
            self._away = False

    def _disconnect(self, connection: Any) -> None:
        heard, self._listening = self._listening, None
        with suppress(Exception):
            if heard is not None and heard is connection.connection:
                # It may come from a pool, and go back there.
                heard.remove_notify_handler(self._hear)
                heard.execute(f"UNLISTEN {sql.CHANNEL}")
        with suppress(Exception):
            connections.close_all()

    def _listen(self, connection: Any) -> None:
        if not (settings.LISTEN and connection.vendor == "postgresql"):
            return
        if connection.connection in (self._listening, self._deaf):
            return
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {sql.CHANNEL}")
            # Without a handler psycopg would keep them all. It is also called for one that arrives
            # with the answer of a poll that did not see the change yet.
            connection.connection.add_notify_handler(self._hear)
            self._listening = connection.connection
        except Exception:
            logger.exception("Cannot listen for cancellations; polling goes on.")
            self._deaf = connection.connection

    def _hear(self, notification: Any) -> None:
        self._at_once = True

    def _wait(self, connection: Any, ear: socket.socket) -> None:
        pause = min(settings.POLL_SECONDS, settings.HEARTBEAT_SECONDS)
        timeout, self._at_once = (0 if self._at_once else pause), False
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(ear, selectors.EVENT_READ)
                if self._listening is not None and self._listening is connection.connection:
                    selector.register(self._listening.fileno(), selectors.EVENT_READ)
                if any(key.fileobj is ear for key, _ in selector.select(timeout)):
                    ear.recv(1024)
        except Exception:  # noqa: BLE001 - no descriptors, or a connection that has been lost
            time.sleep(timeout)


def _look(executions: list[Watched]) -> None:
    for execution in executions:
        execution.tick()
    found = run_rows(pk__in={execution.run.pk for execution in executions})
    rows = {row.pk: row for row in found.values_list(*Row._fields, named=True)}
    for execution in executions:
        if execution.run.pk in rows:
            execution.seen(rows[execution.run.pk])


def _beat(executions: list[Watched]) -> None:
    now = time.monotonic()
    due = [
        execution
        for execution in executions
        if execution.alive and now - execution.beat_at >= settings.HEARTBEAT_SECONDS
    ]
    if not due:
        return
    for execution in due:
        execution.alive = False  # before: what the code does from now on counts for the next one
    written: set[Any] = set()
    try:
        # A row that somebody has locked, such as the code of the run itself, keeps nobody waiting.
        ids = {each.execution_id for each in due}
        rows = run_rows(
            pk__in={each.run.pk for each in due}, execution_id__in=ids, status=RunStatus.RUNNING
        )
        written = set(sql.update_unlocked(rows, heartbeat_at=timezone.now()))
    finally:
        for execution in due:
            if execution.run.pk in written:
                execution.beat_at = now
            else:
                execution.alive = True


_watcher = Watcher()


def watch(execution: Watched) -> None:
    """Watch an execution in this process.

    Raises:
        OSError: There are no descriptors left for it.
        RuntimeError: There are no threads left for it.
    """
    _watcher.add(execution)


def unwatch(execution: Watched) -> None:
    """Watch it no longer. The last one that leaves ends the thread."""
    _watcher.remove(execution)


_collecting: int | None = None


def _note_collection(phase: str, info: Any) -> None:
    global _collecting
    _collecting = threading.get_ident() if phase == "start" else None


gc.callbacks.append(_note_collection)


def amid_a_statement() -> bool:
    """Tell whether this thread may be amid a statement, and must not begin another.

    The one that asks the database may; and one that collects garbage, as that can be anywhere.
    """
    return _watcher.is_current_thread() or _collecting == threading.get_ident()


def _after_fork() -> None:
    global _watcher
    before, _watcher = _watcher, Watcher()
    for execution in before.watched.values():
        execution.forked()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_after_fork)
