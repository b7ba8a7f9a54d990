"""Processes that fork: before a run is executed, and while it is."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import connections

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution, watcher
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import (
    cancel,
    fresh,
    wait_until,
    work_on,
)
from tests.helpers import make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestForks:
    """What a pre-forking worker does, and code that forks while it works."""

    def fork(self, child: Callable[[], None]) -> int:
        connections.close_all()  # as they all do: a connection cannot be shared
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)

    def succeeded(self, pid: int) -> bool:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_the_child_is_killed__delivered_again(self, settings: Any) -> None:
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.2
        run = make_run()

        def child() -> None:
            with execution(run.run_id, heartbeat="process"):
                os.kill(os.getpid(), signal.SIGKILL)

        assert not self.succeeded(self.fork(child))
        assert fresh(run).status == RunStatus.RUNNING
        with execution(run.run_id, take_over="if_dead"):
            pass
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_executes_in_the_child(self) -> None:
        run, other = make_run(), make_run()

        def child() -> None:
            with pytest.raises(RunCancelled), execution(run.run_id) as executed:
                work_on(executed)

        with execution(other.run_id):  # the parent's thread does not exist in the child
            time.sleep(0.05)
            pid = self.fork(child)
            wait_until(lambda: fresh(run).status != RunStatus.QUEUED)
            cancel(run)
            assert self.succeeded(pid)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
        assert statuses(other) == [RunStatus.COMPLETED]

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_forks_while_it_executes(self) -> None:
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:

            def child() -> None:
                assert not executed.cancel_requested
                with pytest.raises(RunCancelled):
                    work_on(executed)

            pid = self.fork(child)
            cancel(run)
            assert self.succeeded(pid)
            work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_callbacks_are_those_of_the_parent(self) -> None:
        run = make_run()
        receiver, sender = os.pipe()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            executed.on_cancel(lambda: os.write(sender, b"called "))

            def child() -> None:
                with pytest.raises(RunCancelled):
                    work_on(executed)
                executed._callbacks.wait()

            pid = self.fork(child)
            cancel(run)
            assert self.succeeded(pid)
            work_on(executed)
        os.close(sender)
        assert os.read(receiver, 100) == b"called "
        os.close(receiver)

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_the_child_leaves_the_block(self) -> None:
        """It is the parent who says how the run ends."""
        run = make_run()
        with execution(run.run_id) as executed:

            def child() -> None:
                with suppress(SystemExit):
                    try:
                        sys.exit()
                    except SystemExit as error:
                        executed.__exit__(None, error, None)
                        raise

            assert self.succeeded(self.fork(child))
            assert fresh(run).status == RunStatus.RUNNING
            executed._pid += 1  # the same in this process
            executed.__exit__(None, ValueError(), None)
            executed._pid -= 1
            assert fresh(run).status == RunStatus.RUNNING
        assert fresh(run).status == RunStatus.COMPLETED

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_forks_when_it_is_to_stop(self) -> None:
        run = make_run()
        with execution(run.run_id) as executed:
            cancel(run)
            with pytest.raises(RunCancelled):
                work_on(executed)

            def child() -> None:
                with pytest.raises(RunCancelled):
                    executed.checkpoint()

            assert self.succeeded(self.fork(child))
            executed._watch.after_fork()  # the same in this process
            assert executed.cancel_requested

    def test_what_the_child_is_left_with(self) -> None:
        """The same in this process, where coverage is measured."""
        run, parents = make_run(), watcher.current
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            watcher._after_fork()
            parents.remove(executed._watch)
            executed._watch.is_active = True  # a child knows nothing of that
            assert not watcher.current.watches
            executed.checkpoint()
            assert watcher.current.watches
            watcher.current.remove(executed._watch)
            executed._watch.is_active = True
            watcher.current.overdue_at = 0.0
            assert not executed.cancel_requested
            assert watcher.current.watches  # it joins as well
            cancel(run)
            work_on(executed)
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED
