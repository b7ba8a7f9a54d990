"""Functions registered with on_cancel(): called once, each with a deadline."""

from __future__ import annotations

import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import callbacks, execution
from django_run_cancel.execution.callbacks import Callbacks
from django_run_cancel.execution.thread_context import NO_CONTEXT
from django_run_cancel.states import StopState
from tests.execution.helpers import (
    PATIENCE,
    cancel,
    fresh,
    work_on,
)
from tests.helpers import make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestCallbacks:
    def test_at_once(self) -> None:
        run, called = make_run(), threading.Event()
        with execution(run.run_id) as executed:
            executed.on_cancel(called.set)
            assert not called.wait(0.1)
            cancel(run)
            assert called.wait(PATIENCE)
            late = threading.Event()
            executed.on_cancel(late.set)
            assert late.wait(PATIENCE)

    def test_once(self, settings: Any) -> None:
        settings.RUN_CANCEL_POLL_SECONDS = 60
        run, called = make_run(), []
        with execution(run.run_id) as executed:
            executed.on_cancel(lambda: called.append(1))
            cancel(run)  # seen when it leaves
        assert called == [1]

    def test_interrupted_while_they_are_started(self, settings: Any, monkeypatch: Any) -> None:
        """By a signal, for example of a time limit: the others are called, too."""
        settings.RUN_CANCEL_POLL_SECONDS = 60
        run, called, started = make_run(), [], []
        real = Callbacks._call

        def call(callbacks: Any, *args: Any) -> None:
            started.append(args)
            if len(started) == 2:
                raise SystemExit(143)
            real(callbacks, *args)

        monkeypatch.setattr(Callbacks, "_call", call)
        with pytest.raises(SystemExit), execution(run.run_id) as executed:  # noqa: PT012
            for number in range(4):
                executed.on_cancel(partial(called.append, number))
            cancel(run)  # seen when it leaves
        assert sorted(called) == [0, 2, 3]
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_not_without_a_cancellation(self) -> None:
        run, called = make_run(), []
        with execution(run.run_id) as executed:
            executed.on_cancel(lambda: called.append(1))
        assert called == []

    def test_coroutine_functions(self) -> None:
        run, called = make_run(), threading.Event()

        async def callback() -> None:
            called.set()

        with execution(run.run_id) as executed:
            executed.on_cancel(callback)
            cancel(run)
            assert called.wait(PATIENCE)

    def test_functions_that_return_coroutines(self) -> None:
        run, called = make_run(), threading.Event()

        async def callback() -> None:
            called.set()

        with execution(run.run_id) as executed:
            executed.on_cancel(lambda: callback())
            cancel(run)
            assert called.wait(PATIENCE)

    @pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), 1e10])
    def test_deadlines_that_are_none(self, deadline: float) -> None:
        executed = execution("tsk_x")
        with pytest.raises(ValueError, match="seconds above 0"):
            executed.on_cancel(lambda: None, deadline=deadline)
        with pytest.raises(TypeError):
            executed.on_cancel(lambda: None, deadline=None)  # type: ignore[arg-type]

    def test_stopped_only_when_they_have_ended(self) -> None:
        run, states = make_run(), []

        def callback() -> None:
            time.sleep(0.2)
            states.append(fresh(run).stop_state)

        with execution(run.run_id) as executed:
            executed.on_cancel(callback)
            cancel(run)
        assert states == [StopState.STOPPING]
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_deadline(self, caplog: Any) -> None:
        run, done = make_run(), threading.Event()
        began = time.monotonic()
        with execution(run.run_id) as executed:
            executed.on_cancel(lambda: done.wait(PATIENCE), deadline=0.1)
            cancel(run)
        assert time.monotonic() - began < PATIENCE / 2
        done.set()
        assert "an on_cancel() function, has failed" in caplog.text
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    @pytest.mark.parametrize("kind", [ValueError, SystemExit])
    def test_errors(self, kind: type[BaseException], caplog: Any) -> None:
        run = make_run()

        def callback() -> None:
            raise kind("of the callback")

        with execution(run.run_id) as executed:
            executed.on_cancel(callback)
            cancel(run)
        assert f"{kind.__name__}: of the callback" in caplog.text
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_no_threads_left(self, caplog: Any, monkeypatch: Any) -> None:
        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        run = make_run()
        with execution(run.run_id) as executed:
            cancel(run)
            with pytest.raises(RunCancelled):
                work_on(executed)
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", start)
                executed.on_cancel(lambda: None)
        assert "can't start new thread" in caplog.text
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_interrupted_while_it_waits(self, monkeypatch: Any) -> None:
        """As by Ctrl-C: the code has left, that is recorded, and nobody has to wait again."""
        waits: list[Any] = []

        def wait(callbacks: Any) -> None:
            waits.append(callbacks)
            raise KeyboardInterrupt

        monkeypatch.setattr(Callbacks, "wait", wait)
        run = make_run()
        with pytest.raises(KeyboardInterrupt), execution(run.run_id):
            cancel(run)
        assert len(waits) == 1
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED


class TestDeadlines:
    """With a clock that the test sets, near zero: there, sums are far from all that is no sum."""

    @pytest.fixture
    def clock(self, monkeypatch: Any) -> SimpleNamespace:
        clock = SimpleNamespace(seconds=0.0)
        fake = SimpleNamespace(monotonic=lambda: clock.seconds)
        monkeypatch.setattr(callbacks, "time", fake)
        return clock

    @pytest.mark.parametrize("seconds", [0.0, 1.0])
    def test_waits_until_then(self, clock: SimpleNamespace, seconds: float, caplog: Any) -> None:
        go_on, ended = threading.Event(), threading.Event()

        def callback() -> None:
            go_on.wait(PATIENCE)
            ended.set()

        called = Callbacks()
        called.add(callback, 2 * PATIENCE)
        called.begin(None, NO_CONTEXT)
        clock.seconds = seconds
        threading.Timer(0.1, go_on.set).start()
        called.wait()
        assert ended.is_set()
        assert not caplog.records

    @pytest.mark.parametrize(("deadline", "seconds"), [(0.05, 0.0001), (60, 61)])
    def test_and_no_longer(
        self, clock: SimpleNamespace, deadline: float, seconds: float, caplog: Any
    ) -> None:
        go_on, ended = threading.Event(), threading.Event()

        def callback() -> None:
            go_on.wait(PATIENCE / 2)
            ended.set()

        called = Callbacks()
        called.add(callback, deadline)
        called.begin(None, NO_CONTEXT)
        clock.seconds = seconds
        called.wait()
        assert not ended.is_set()
        assert "an on_cancel() function, has failed" in caplog.text
        go_on.set()
