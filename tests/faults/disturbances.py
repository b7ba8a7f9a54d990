"""Sessions of the database that end, and answers of the database that are lost, at a given step."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db import Error, connection, connections

from django_run_cancel.testing.conformance.proxy import Proxy
from tests.helpers import IS_POSTGRESQL, IS_SQLITE

needs_server = pytest.mark.skipif(IS_SQLITE, reason="SQLite has no sessions that could end.")


class ForgetfulProxy(Proxy):
    """Lets a statement reach the server, and the answer reach nobody.

    Attributes:
        loses_answer: Whether the next answer ends the connection instead of arriving.
    """

    loses_answer = False

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.loses_answer and source.getpeername() == self._target:
                    self.loses_answer = False
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def through_proxy() -> Iterator[Callable[[], None]]:
    """Let Django reach the database through a proxy; yield what makes that lose an answer."""
    settings = connection.settings_dict
    connections.close_all()
    proxy = ForgetfulProxy(f"tcp://{settings['HOST']}:{settings['PORT']}")
    with proxy, pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings, "PORT", proxy.url.rpartition(":")[2])
        patch.setitem(settings, "HOST", "127.0.0.1")

        def lose_answer() -> None:
            proxy.loses_answer = True

        try:
            yield lose_answer
        finally:
            connections.close_all()


@contextmanager
def disturbed_at(number: int, disturb: Callable[[], object]) -> Iterator[list[int]]:
    """Do something before a step; yield the number of steps. Statements and commits are steps."""
    steps = [0]

    def step() -> None:
        steps[0] += 1
        if steps[0] == number + 1:
            disturb()

    def wrapper(execute: Callable[..., Any], *args: Any) -> Any:
        step()
        return execute(*args)

    commit = connection._commit

    def watched_commit() -> None:
        step()
        commit()

    with pytest.MonkeyPatch.context() as patch, connection.execute_wrapper(wrapper):
        patch.setattr(connection, "_commit", watched_commit)
        yield steps


def end_session() -> None:
    """Let the server end the session of this thread."""
    number = connection.connection.info.backend_pid if IS_POSTGRESQL else None
    if number is None:
        number = connection.connection.thread_id()
    statement = (
        f"SELECT pg_terminate_backend({number}, 60000)" if IS_POSTGRESQL else f"KILL {number}"
    )
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute(statement)
    other.close()


def every_step(
    prepare: Callable[[], None], action: Callable[[], Any], disturb: Callable[[], object]
) -> Iterator[Any]:
    """Prepare and do something, disturbed before every step in turn, until it has no more steps.

    Yields:
        What it has returned, or the error that it has raised, while the rows are as it left them.
    """
    number = 0
    while True:
        prepare()
        with disturbed_at(number, disturb) as steps:
            try:
                result = action()
            except Error as error:
                result = error
        connection.close()
        yield result
        if steps[0] <= number:
            assert number, "There was nothing to disturb."
            return
        number += 1
