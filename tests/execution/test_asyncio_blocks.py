"""Coroutines: entering, leaving, callbacks and heartbeats of ``async with``."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import block, execution
from django_run_cancel.execution.callbacks import Callbacks
from django_run_cancel.execution.thread_context import NO_CONTEXT
from django_run_cancel.execution.watcher import Watch, Watcher
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import (
    PATIENCE,
    acancel,
    acknowledged,
    cancel,
    current_task,
    elsewhere,
    fresh,
    run_async,
    wait_until,
)
from tests.helpers import IS_SQLITE, make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestDatabase:
    def test_inside_a_transaction_of_the_code(self) -> None:
        if IS_SQLITE:
            pytest.skip("Nobody can cancel while Django's BEGIN IMMEDIATE has the database.")
        run = make_run()

        def transact() -> None:
            with transaction.atomic():
                assert statuses(run) == [RunStatus.RUNNING]
                elsewhere(cancel, run)

        async def main() -> None:
            async with execution(run.run_id):
                await sync_to_async(transact)()
                await asyncio.sleep(PATIENCE)

        with pytest.raises(RunCancelled):
            run_async(main)
        assert acknowledged(run)

    def test_lives_while_its_loop_does(self, settings: Any) -> None:
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.02
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id) as executed:
                first = elsewhere(lambda: fresh(run).heartbeat_at)
                async with asyncio.timeout(PATIENCE):
                    while elsewhere(lambda: fresh(run).heartbeat_at) == first:
                        await asyncio.sleep(0.01)
                # The loop stands still from here on.
                wait_until(lambda: not executed._watch.code_is_alive)
                time.sleep(0.1)
                assert not executed._watch.code_is_alive

        run_async(main)
        assert fresh(run).heartbeat_at > run.started_at


class TestCallbacks:
    def test_on_the_loop(self, caplog: Any) -> None:
        run, where = make_run(), []

        async def callback() -> None:
            where.append(asyncio.get_running_loop())
            await asyncio.sleep(0.2)  # leaving waits by now, and not in the thread of the ORM
            where.append(await sync_to_async(lambda: fresh(run).stop_state)())

        async def main() -> None:
            async with execution(run.run_id) as executed:
                where.append(asyncio.get_running_loop())
                executed.on_cancel(callback)
                await acancel(run)
                await asyncio.sleep(PATIENCE)

        with pytest.raises(RunCancelled):
            run_async(main)
        assert where[0] is where[1]
        assert where[2] == StopState.STOPPING
        assert not caplog.records
        assert acknowledged(run)

    def test_functions_in_a_thread(self, caplog: Any) -> None:
        """Of their own: neither that of the loop nor that of the ORM waits for them."""
        run, threads = make_run(), []
        others = {threading.main_thread()}

        async def main() -> None:
            others.add(threading.current_thread())
            with suppress(RunCancelled):  # if it is told before it leaves
                async with execution(run.run_id) as executed:
                    executed.on_cancel(lambda: threads.append(threading.current_thread()))
                    await acancel(run)

        run_async(main)
        (thread,) = threads
        assert thread not in others
        assert not caplog.records
        assert acknowledged(run)

    def test_deadline(self, caplog: Any) -> None:
        run, cancelled = make_run(), []

        async def callback() -> None:
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        async def main() -> None:
            with suppress(RunCancelled):  # if it is told before it leaves
                async with execution(run.run_id) as executed:
                    executed.on_cancel(callback, deadline=0.1)
                    await acancel(run)
            await asyncio.sleep(0.05)

        run_async(main)
        assert cancelled == [True]
        assert "an on_cancel() function, has failed" in caplog.text
        assert acknowledged(run)

    def test_that_is_cancelled(self, caplog: Any) -> None:
        """By itself, or with all tasks of its loop."""
        run = make_run()

        async def callback() -> None:
            current_task().cancel()
            await asyncio.sleep(0)

        async def main() -> None:
            async with execution(run.run_id) as executed:
                executed.on_cancel(callback)
                await acancel(run)
                await asyncio.sleep(PATIENCE)

        with pytest.raises(RunCancelled):
            run_async(main)
        assert "an on_cancel() function, has failed" in caplog.text
        assert acknowledged(run)

    def test_on_a_loop_that_was_busy(self) -> None:
        """Its time begins when it does."""
        run, done = make_run(), []

        async def callback() -> None:
            await asyncio.sleep(0.01)
            done.append("done")

        async def main() -> None:
            async with execution(run.run_id) as executed:
                executed.on_cancel(callback, deadline=1)
                await sync_to_async(cancel)(run)
                time.sleep(1.2)  # not await: nothing else runs on the loop
                assert done == []
                with pytest.raises(RunCancelled):
                    executed.checkpoint()

        run_async(main)
        assert done == ["done"]
        assert acknowledged(run)

    def test_after_the_loop_has_ended(self) -> None:
        """It runs all the same, on a loop of its own."""
        loop, called = asyncio.new_event_loop(), threading.Event()
        loop.close()

        async def callback() -> None:
            called.set()

        callbacks = Callbacks()
        callbacks.add(callback, PATIENCE)
        callbacks.begin(loop, NO_CONTEXT)
        callbacks.wait()
        assert called.is_set()


class TestEntering:
    @pytest.mark.parametrize("error", [SystemExit(), OSError("no descriptors left")])
    def test_what_comes_before_the_work_ends_the_run(
        self, error: BaseException, monkeypatch: Any
    ) -> None:
        run = make_run()

        def add(watcher: Watcher, watch: Watch) -> None:
            raise error

        async def main() -> None:
            with pytest.raises(type(error)):
                async with execution(run.run_id):
                    pytest.fail("It was entered.")

        monkeypatch.setattr(Watcher, "add", add)
        run_async(main)
        assert fresh(run).status == RunStatus.FAILED
        assert run.failure_reason.startswith(type(error).__name__)

    def test_what_comes_before_the_start_leaves_the_run_alone(self, monkeypatch: Any) -> None:
        run = make_run()

        real, calls = block.complete_despite_cancellation, []

        async def to_the_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            calls.append(work)
            if len(calls) == 1:
                raise KeyboardInterrupt
            await real(work)

        async def main() -> None:
            with pytest.raises(KeyboardInterrupt):
                async with execution(run.run_id):
                    pytest.fail("It was entered.")

        monkeypatch.setattr(block, "complete_despite_cancellation", to_the_end)
        run_async(main)
        assert fresh(run).status == RunStatus.QUEUED

    def test_a_forked_process_that_leaves_says_nothing(self) -> None:
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id) as executed:
                executed._pid += 1
                await executed.__aexit__(None, ValueError(), None)
                executed._pid -= 1
                assert await sync_to_async(statuses)(run) == [RunStatus.RUNNING]

        run_async(main)
        assert statuses(run) == [RunStatus.COMPLETED]
