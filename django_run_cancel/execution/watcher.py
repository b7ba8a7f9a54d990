"""The watcher thread: reads cancellations and writes heartbeats for the runs of this process.

It has a database connection of its own: in a transaction, the connection of the running code may
read a snapshot from before the cancellation.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from django.db import connections

from django_run_cancel.conf import settings
from django_run_cancel.db import locks, writes
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.execution.flag import StopFlag
from django_run_cancel.execution.ownership import Ownership, RunRow
from django_run_cancel.execution.thread_context import (
    NO_CONTEXT,
    ThreadContext,
    grouping_key,
)
from django_run_cancel.models import Cancellation, run_rows
from django_run_cancel.states import RunStatus

THREAD_NAME = "run_cancel"

YIELD_SECONDS = 0.05
"""How long a checkpoint waits for the watcher if both are greenlets in the same thread."""

logger = logging.getLogger(__name__)


class Watch:
    """One execution that the watcher polls for.

    Attributes:
        ownership: The run and the id of the execution.
        flag: Set by the watcher when the code must stop.
        code_is_alive: Whether the code has given a sign of life since the last heartbeat.
        beat_at: Monotonic time of the last heartbeat.
        loop: The event loop of the code if it entered the block with ``async with``.
        context: Context manager factory that the thread enters to see the run.
        row_is_visible: False if the row may be uncommitted, in a transaction of the code.
        is_active: Whether the code is inside its block.
    """

    def __init__(
        self,
        ownership: Ownership,
        flag: StopFlag,
        *,
        is_always_alive: bool,
        after_fork: Callable[[], None],
    ) -> None:
        self.ownership = ownership
        self.flag = flag
        self.code_is_alive = True
        self.beat_at = 0.0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.context: ThreadContext = NO_CONTEXT
        self.row_is_visible = True
        self.is_active = False
        self._is_always_alive = is_always_alive
        self._after_fork = after_fork
        self._is_reported_missing = False

    def probe_liveness(self) -> None:
        if self._is_always_alive:
            self.code_is_alive = True
        elif self.loop is not None:
            with suppress(RuntimeError):  # closed
                self.loop.call_soon_threadsafe(setattr, self, "code_is_alive", True)

    def after_fork(self) -> None:
        self.loop = None
        self.flag.reset_lock()
        self._after_fork()

    def report_missing_once(self) -> None:
        if self.row_is_visible and not self._is_reported_missing:
            self._is_reported_missing = True
            logger.error(
                "Run %s is being executed, but the thread that looks for its cancellation cannot "
                "find it: its code will not be told. If that depends on the connection (a schema "
                "per tenant, row-level security, session variables), set "
                "RUN_CANCEL_THREAD_CONTEXT. Otherwise the run has been deleted.",
                self.ownership.run_id,
            )


class Watcher:
    """Polls the database in a thread that ends with the last execution.

    Attributes:
        overdue_at: Monotonic time after which the next poll is late.
    """

    def __init__(self) -> None:
        self.overdue_at = 0.0
        self.watches: dict[int, Watch] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._native_id: int | None = None
        self._poll_immediately = False
        self._is_failing = False
        self._listening_connection: Any = None
        self._cannot_listen = False

    def add(self, watch: Watch) -> None:
        """Watch an execution; start the thread if there is none.

        Raises:
            OSError: There are no file descriptors left.
            RuntimeError: There are no threads left.
        """
        watch.beat_at = time.monotonic()  # start() has written a heartbeat
        with self._lock:
            if self._thread is None:
                self._thread = self._start()
            self.watches[id(watch)] = watch
            watch.is_active = True

    def remove(self, watch: Watch) -> None:
        """Stop watching an execution. After the last one, the thread ends."""
        watch.is_active = False
        with self._lock:
            if self.watches.pop(id(watch), None) is not None and not self.watches:
                with suppress(OSError):  # without the wake-up, the next poll ends the thread
                    self._wake_up_sender.send(b".")

    def catch_up(self, watch: Watch) -> None:
        """Give a late watcher time to poll, if the calling code is what keeps it from running."""
        if not watch.is_active:
            return
        if id(watch) not in self.watches:
            self.add(watch)  # this process was forked inside the block, and has no thread yet
        elif self._native_id in {None, threading.get_native_id()}:
            self._yield_to_thread()

    def _yield_to_thread(self) -> None:
        """Wait for a poll: greenlets of gevent and eventlet run only while others wait."""
        until = time.monotonic() + YIELD_SECONDS
        while self.overdue_at < time.monotonic() < until:
            time.sleep(0.001)
        self._postpone()

    def _postpone(self) -> None:
        self.overdue_at = time.monotonic() + 2 * settings.POLL_SECONDS

    def _start(self) -> threading.Thread:
        self._wake_up_sender, wake_up_receiver = socket.socketpair()
        self._wake_up_sender.setblocking(False)
        self._postpone()
        thread = threading.Thread(
            target=self._run,
            args=[self._wake_up_sender, wake_up_receiver],
            name=THREAD_NAME,
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:
            self._wake_up_sender.close()
            wake_up_receiver.close()
            raise
        return thread

    def _run(self, wake_up_sender: socket.socket, wake_up_receiver: socket.socket) -> None:
        self._native_id = threading.get_native_id()
        self._is_failing = False  # an earlier thread may have ended during an outage
        self._poll_immediately = settings.LISTEN  # the first poll connects and issues LISTEN
        with wake_up_sender, wake_up_receiver:
            while True:
                self._wait(wake_up_receiver)
                with self._lock:
                    watches = list(self.watches.values())
                    if not watches:
                        self._thread = None
                        break
                self._poll(watches)
                self._postpone()
            self._disconnect()

    def _poll(self, watches: list[Watch]) -> None:
        was_failing, self._is_failing = self._is_failing, False
        for group in _group_by_context(watches):
            try:
                with group[0].context():
                    self._listen(connections[run_rows().db])
                    poll_runs(group)
                    write_heartbeats(group)
            except Exception:
                # No error may end this thread. A later poll reads what this one has missed.
                if not was_failing and not self._is_failing:
                    logger.exception("Cannot ask whether runs have been cancelled; trying again.")
                self._is_failing = True
                self._disconnect()

    def _disconnect(self) -> None:
        connection, self._listening_connection = self._listening_connection, None
        self._cannot_listen = False
        with suppress(Exception):
            if connection is not None:
                # The connection may return to a pool: stop listening on it.
                connection.remove_notify_handler(self._on_notification)
                connection.execute(f"UNLISTEN {writes.CHANNEL}")
        with suppress(Exception):
            connections.close_all()

    def _listen(self, connection: Any) -> None:
        if not settings.LISTEN or connection.vendor != "postgresql":
            return
        if self._listening_connection is not None or self._cannot_listen:
            return
        connection.ensure_connection()
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {writes.CHANNEL}")
            # Without a handler psycopg keeps all notifications. The handler is also called for a
            # notification that arrives during a poll that did not see the change yet.
            connection.connection.add_notify_handler(self._on_notification)
            self._listening_connection = connection.connection
        except Exception:
            logger.exception("Cannot listen for cancellations; polling goes on.")
            self._cannot_listen = True

    def _on_notification(self, notification: Any) -> None:
        self._poll_immediately = True

    def _wait(self, wake_up_receiver: socket.socket) -> None:
        pause = min(settings.POLL_SECONDS, settings.HEARTBEAT_SECONDS)
        timeout, self._poll_immediately = (0 if self._poll_immediately else pause), False
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(wake_up_receiver, selectors.EVENT_READ)
                if self._listening_connection is not None:
                    selector.register(self._listening_connection.fileno(), selectors.EVENT_READ)
                if any(key.fileobj is wake_up_receiver for key, _ in selector.select(timeout)):
                    wake_up_receiver.recv(1024)
        except Exception:  # noqa: BLE001 - no file descriptors left, or the connection is lost
            time.sleep(timeout)


def _group_by_context(watches: Iterable[Watch]) -> Iterable[list[Watch]]:
    groups: dict[Any, list[Watch]] = {}
    for watch in watches:
        groups.setdefault(grouping_key(watch.context), []).append(watch)
    return groups.values()


def poll_runs(watches: list[Watch]) -> None:
    """Set the flags of executions that must stop: one query for runs, one for cancellations."""
    for watch in watches:
        watch.probe_liveness()
    hidden = {id(watch) for watch in watches if watch.ownership.is_start_hidden()}
    runs = run_rows(pk__in={watch.ownership.run.pk for watch in watches})
    rows = {row.pk: row for row in runs.values_list(*RunRow._fields, named=True)}
    to_stop = []
    for watch in watches:
        row = rows.get(watch.ownership.run.pk)
        if row is None:
            watch.report_missing_once()
        elif not watch.flag.is_set:
            error = watch.ownership.error_for(row, is_start_hidden=id(watch) in hidden)
            if error is not None:
                to_stop.append((watch, error, row.cancellation))
    if to_stop:
        keys = {cancellation for _, _, cancellation in to_stop if cancellation is not None}
        records = Cancellation.objects.using(runs.db).in_bulk(keys)
        for watch, error, cancellation in to_stop:
            watch.flag.set_if_open(error, records.get(cancellation))


def write_heartbeats(watches: list[Watch]) -> None:
    """Write the heartbeats that are due, for all executions at once."""
    now = time.monotonic()
    due = [
        watch
        for watch in watches
        if watch.code_is_alive and now - watch.beat_at >= settings.HEARTBEAT_SECONDS
    ]
    if not due:
        return
    for watch in due:
        watch.code_is_alive = False  # before the query: keeps later signs of life
    written: set[Any] = set()
    try:
        # Skips locked rows, for example those that the code of the run has locked itself.
        rows = run_rows(
            pk__in={watch.ownership.run.pk for watch in due},
            execution_id__in={watch.ownership.execution_id for watch in due},
        ).filter(is_one_of("status", [RunStatus.RUNNING]))
        written = set(locks.update_unlocked(rows, heartbeat_at=DatabaseNow()))
    finally:
        for watch in due:
            if watch.ownership.run.pk in written:
                watch.beat_at = now
            else:
                watch.code_is_alive = True


current = Watcher()
"""The watcher of this process."""


def poll_now() -> None:
    """Poll once in the calling thread, without a heartbeat. For tests."""
    for group in _group_by_context(current.watches.values()):
        with group[0].context():
            poll_runs(group)


def _after_fork() -> None:
    """Replace the watcher in a forked process; the next checkpoint starts a new thread."""
    global current
    parent, current = current, Watcher()
    for watch in parent.watches.values():
        watch.after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_after_fork)
