"""Processes of our own that are forked, killed at a certain step with SIGKILL, or stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from django.db import connection, connections


class Ended(NamedTuple):
    """How a process has ended.

    Attributes:
        is_killed: Whether it was killed before it could end.
        answer: What its action has returned; None if it did not get there.
    """

    is_killed: bool
    answer: Any


class Child:
    """A forked process that does one thing, and sends back what that returns, as JSON."""

    def __init__(self, action: Callable[[], Any]) -> None:
        connections.close_all()  # a connection cannot be shared
        sys.stdout.flush()
        sys.stderr.flush()
        self._answers, sending = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(sending)
            return
        try:
            os.close(self._answers)
            with os.fdopen(sending, "w") as file:
                json.dump(action(), file)
        except BaseException:  # noqa: BLE001 - nothing of pytest is to run in this process
            traceback.print_exc()
        os._exit(0)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_until_stopped(self) -> None:
        """Return once SIGSTOP has stopped it."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def wait(self) -> Ended:
        """Return how it has ended."""
        with os.fdopen(self._answers) as file:
            text = file.read()
        _, status = os.waitpid(self.pid, 0)
        is_killed = os.WIFSIGNALED(status)
        assert is_killed or text, "The process has failed; its standard error says why."
        return Ended(is_killed, json.loads(text) if text else None)


def killed_before_step(number: int, action: Callable[[], Any]) -> Ended:
    """Do something in another process, and kill that before a step.

    Each statement is a step, and so is each commit; before the step that follows a commit, it has
    been made and nobody knows of it.
    """

    def watched() -> Any:
        left = number

        def step() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def wrapper(execute: Callable[..., Any], *args: Any) -> Any:
            step()
            return execute(*args)

        commit = connection._commit

        def watched_commit() -> None:
            step()
            commit()

        connection._commit = watched_commit
        connection.execute_wrappers.append(wrapper)
        answer = action()
        step()
        return answer

    return Child(watched).wait()


def kills(prepare: Callable[[], None], action: Callable[[], Any]) -> Iterator[Ended]:
    """Prepare and do something, killed before every step in turn, until it is not killed any more.

    Yields:
        How it has ended, while the rows are as it has left them.
    """
    number = 0
    while True:
        prepare()
        ended = killed_before_step(number, action)
        yield ended
        number += 1
        if not ended.is_killed:
            assert number > 3, "Nothing was there to be interrupted."
            return
