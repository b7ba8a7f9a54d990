"""Coroutines that are executing a run: they are cancelled as ``asyncio.timeout()`` does it."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction

from django_run_cancel import worker
from django_run_cancel.callbacks import Callbacks
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.states import RunStatus, StopState
from django_run_cancel.worker import execution
from tests.helpers import IS_SQLITE, make_run, statuses
from tests.test_worker import PATIENCE, cancel, elsewhere, fresh

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]

acancel = sync_to_async(cancel)


def run_async(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine; what it asks of the database is asked in this thread."""
    async_to_sync(main)()


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def acknowledged(*runs: Any) -> bool:
    return all(fresh(run).stop_state == StopState.ACKNOWLEDGED for run in runs)


class TestStopping:
    def test_cancels_the_task_that_waits(self) -> None:
        run = make_run()

        async def main() -> None:
            with pytest.raises(RunCancelled) as caught:
                async with execution(run.run_id) as executed:
                    await acancel(run)
                    await asyncio.sleep(PATIENCE)
            assert isinstance(caught.value.__cause__, asyncio.CancelledError)
            assert executed.cancelled
            assert executed.cancellation is not None
            # It is over: the task can go on, and be cancelled by others.
            assert current_task().cancelling() == 0
            await asyncio.sleep(0)

        began = time.monotonic()
        run_async(main)
        assert time.monotonic() - began < PATIENCE / 2
        assert acknowledged(run)

    def test_completes(self) -> None:
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id) as executed:
                await asyncio.sleep(0.1)
                executed.checkpoint()

        run_async(main)
        assert statuses(run) == [RunStatus.COMPLETED]

    def test_fails(self) -> None:
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id):
                raise ValueError("no such page")

        with pytest.raises(ValueError, match="no such page"):
            run_async(main)
        assert fresh(run).failure_reason == "ValueError: no such page"

    def test_does_not_start(self) -> None:
        run = make_run()
        cancel(run)

        async def main() -> None:
            async with execution(run.run_id):
                pytest.fail("It started.")

        with pytest.raises(RunCancelled):
            run_async(main)

    def test_no_other_task(self) -> None:
        run, other = make_run(), make_run()

        async def work(run: Any) -> None:
            async with execution(run.run_id):
                await asyncio.sleep(0.5)

        async def main() -> None:
            works = [asyncio.create_task(work(each)) for each in (run, other)]
            await asyncio.sleep(0.1)
            await acancel(run)
            first, second = await asyncio.gather(*works, return_exceptions=True)
            assert isinstance(first, RunCancelled)
            assert second is None

        run_async(main)
        assert acknowledged(run)
        assert statuses(other) == [RunStatus.COMPLETED]

    def test_at_a_checkpoint_of_code_that_never_waits(self) -> None:
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id) as executed:
                elsewhere(cancel, run)
                until = time.monotonic() + PATIENCE
                while time.monotonic() < until:
                    executed.checkpoint()
                    time.sleep(0.002)

        with pytest.raises(RunCancelled):
            run_async(main)
        assert acknowledged(run)

    def test_code_that_swallows_it(self) -> None:
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id) as executed:
                await acancel(run)
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(PATIENCE)
                await asyncio.sleep(0.1)  # once only
                with pytest.raises(RunCancelled):
                    executed.checkpoint()
            assert executed.cancelled
            assert current_task().cancelling() == 0

        run_async(main)
        assert acknowledged(run)

    def test_code_that_turns_it_into_another_error(self) -> None:
        run = make_run()

        async def main() -> None:
            with pytest.raises(ValueError, match="instead"):
                async with execution(run.run_id):
                    await acancel(run)
                    try:
                        await asyncio.sleep(PATIENCE)
                    except asyncio.CancelledError:
                        raise ValueError("instead") from None
            assert current_task().cancelling() == 0

        run_async(main)
        assert acknowledged(run)

    def test_taken_over(self) -> None:
        run = make_run()

        async def main() -> None:
            with pytest.raises(RunInProgress):
                async with execution(run.run_id), execution(run.run_id, take_over=True):
                    await asyncio.sleep(PATIENCE)

        run_async(main)
        assert statuses(run) == [RunStatus.FAILED]

    def test_ended_from_outside(self) -> None:
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id):
                await sync_to_async(lambda: fresh(run).mark_timed_out())()
                await asyncio.sleep(PATIENCE)

        with pytest.raises(TransitionNotAllowed):
            run_async(main)
        assert statuses(run) == [RunStatus.TIMED_OUT]


class TestOtherCancellations:
    def test_by_somebody_else(self) -> None:
        run = make_run()

        async def main() -> None:
            asyncio.get_running_loop().call_later(0.1, current_task().cancel)
            with pytest.raises(asyncio.CancelledError):
                async with execution(run.run_id):
                    await asyncio.sleep(PATIENCE)
            assert current_task().cancelling() == 1
            current_task().uncancel()

        run_async(main)
        assert fresh(run).status == RunStatus.FAILED
        assert run.failure_reason == "asyncio.exceptions.CancelledError"

    def test_by_both(self) -> None:
        """Somebody else's goes on, as one must not be turned into anything else."""
        run = make_run()

        async def main() -> None:
            with pytest.raises(asyncio.CancelledError):
                async with execution(run.run_id) as executed:
                    await acancel(run)
                    try:
                        await asyncio.sleep(PATIENCE)
                    finally:
                        current_task().cancel()
                        assert executed.cancel_requested
            assert current_task().cancelling() == 1
            current_task().uncancel()

        run_async(main)
        assert acknowledged(run)

    def test_timeout_outside(self) -> None:
        run = make_run()

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), execution(run.run_id):
                    await asyncio.sleep(PATIENCE)

        run_async(main)
        assert statuses(run) == [RunStatus.FAILED]

    def test_timeout_inside(self) -> None:
        run = make_run()

        async def main() -> None:
            with pytest.raises(RunCancelled):
                async with execution(run.run_id), asyncio.timeout(PATIENCE):
                    await acancel(run)
                    await asyncio.sleep(2 * PATIENCE)
            assert current_task().cancelling() == 0

        run_async(main)
        assert acknowledged(run)

    def test_while_it_starts(self) -> None:
        """It must not be left running with nobody at work."""
        run, refused = make_run(), make_run(RunStatus.COMPLETED)

        async def main() -> None:
            for each in (run, refused):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0), execution(each.run_id):
                        pytest.fail("It started.")

        run_async(main)
        assert statuses(run, refused) == [RunStatus.FAILED, RunStatus.COMPLETED]

    def test_while_it_leaves(self) -> None:
        run = make_run()

        async def main() -> None:
            with pytest.raises(asyncio.CancelledError):
                async with execution(run.run_id):
                    asyncio.get_running_loop().call_soon(current_task().cancel)
            current_task().uncancel()

        run_async(main)
        assert statuses(run) == [RunStatus.COMPLETED]

    def test_ours_while_it_leaves(self) -> None:
        """Seen only when the work had been done: nothing is interrupted any more."""
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id) as executed:
                executed.on_cancel(lambda: time.sleep(0.2))
                elsewhere(cancel, run)
                time.sleep(0.1)  # the loop has been told, and has not looked
            await asyncio.sleep(0.05)
            assert current_task().cancelling() == 0

        run_async(main)
        assert acknowledged(run)


class TestNesting:
    def test_the_inner_one(self) -> None:
        outer, inner = make_run(), make_run()

        async def main() -> None:
            async with execution(outer.run_id):
                with pytest.raises(RunCancelled) as caught:
                    async with execution(inner.run_id):
                        await acancel(inner)
                        await asyncio.sleep(PATIENCE)
                assert caught.value.run_id == inner.run_id
                await asyncio.sleep(0.1)

        run_async(main)
        assert acknowledged(inner)
        assert statuses(outer) == [RunStatus.COMPLETED]

    def test_the_outer_one(self) -> None:
        outer, inner = make_run(), make_run()

        async def main() -> None:
            with pytest.raises(RunCancelled) as caught:
                async with execution(outer.run_id), execution(inner.run_id):
                    await acancel(outer)
                    await asyncio.sleep(PATIENCE)
            assert caught.value.run_id == outer.run_id

        run_async(main)
        assert acknowledged(outer)
        assert statuses(inner) == [RunStatus.FAILED]

    def test_both(self) -> None:
        outer = make_run()
        inner = outer.create_child()

        async def main() -> None:
            with pytest.raises(RunCancelled) as caught:
                async with execution(outer.run_id), execution(inner.run_id):
                    await acancel(outer)
                    await asyncio.sleep(PATIENCE)
            assert caught.value.run_id == outer.run_id
            assert current_task().cancelling() == 0

        run_async(main)
        assert acknowledged(outer, inner)

    def test_task_group_inside(self) -> None:
        run, ended = make_run(), []

        async def work(number: int) -> None:
            try:
                await asyncio.sleep(PATIENCE)
            finally:
                ended.append(number)

        async def main() -> None:
            with pytest.raises(RunCancelled):  # and no group of exceptions
                async with execution(run.run_id), asyncio.TaskGroup() as group:
                    for number in range(3):
                        group.create_task(work(number))
                    await acancel(run)
            assert current_task().cancelling() == 0

        run_async(main)
        assert sorted(ended) == [0, 1, 2]
        assert acknowledged(run)

    def test_task_group_outside(self) -> None:
        run, other = make_run(), make_run()

        async def work(run: Any) -> None:
            try:
                async with execution(run.run_id):
                    await asyncio.sleep(0.5)
            except RunCancelled as error:
                assert error.run_id == run.run_id  # noqa: PT017

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(work(run))
                group.create_task(work(other))
                await asyncio.sleep(0.1)
                await acancel(run)

        run_async(main)
        assert acknowledged(run)
        assert statuses(other) == [RunStatus.COMPLETED]


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
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.1
        run, beats = make_run(), []

        async def main() -> None:
            async with execution(run.run_id):
                await asyncio.sleep(0.5)
                beats.append(elsewhere(lambda: fresh(run).heartbeat_at))
                time.sleep(0.3)  # not alive: at most one more
                beats.append(elsewhere(lambda: fresh(run).heartbeat_at))

        run_async(main)
        assert beats[0] > run.started_at
        assert (beats[1] - beats[0]).total_seconds() < 0.25


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

    def test_functions_in_a_thread(self) -> None:
        run, threads = make_run(), []

        async def main() -> None:
            async with execution(run.run_id) as executed:
                executed.on_cancel(lambda: threads.append(threading.current_thread()))
                await acancel(run)

        run_async(main)
        (thread,) = threads
        assert thread is not threading.main_thread()
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
            async with execution(run.run_id) as executed:
                executed.on_cancel(callback, deadline=0.1)
                await acancel(run)
            await asyncio.sleep(0.05)

        run_async(main)
        assert cancelled == [True]
        assert "did not end well" in caplog.text
        assert acknowledged(run)

    def test_on_a_loop_that_was_busy(self) -> None:
        """Its time begins when it does."""
        run, done = make_run(), []

        async def callback() -> None:
            await asyncio.sleep(0.2)
            done.append("done")

        async def main() -> None:
            async with execution(run.run_id) as executed:
                executed.on_cancel(callback, deadline=0.5)
                await sync_to_async(cancel)(run)
                time.sleep(0.8)  # not await: nothing else runs on the loop
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
        callbacks.begin(loop)
        callbacks.wait()
        assert called.is_set()


class TestEntering:
    @pytest.mark.parametrize("error", [SystemExit(), OSError("no descriptors left")])
    def test_what_comes_before_the_work_ends_the_run(
        self, error: BaseException, monkeypatch: Any
    ) -> None:
        run = make_run()

        def watch(executed: Any) -> None:
            raise error

        async def main() -> None:
            with pytest.raises(type(error)):
                async with execution(run.run_id):
                    pytest.fail("It was entered.")

        monkeypatch.setattr(worker, "watch", watch)
        run_async(main)
        assert fresh(run).status == RunStatus.FAILED
        assert run.failure_reason.startswith(type(error).__name__)

    def test_what_comes_before_the_start_leaves_the_run_alone(self, monkeypatch: Any) -> None:
        run = make_run()

        real, calls = worker.to_the_end, []

        async def to_the_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
            calls.append(work)
            if len(calls) == 1:
                raise KeyboardInterrupt
            await real(work)

        async def main() -> None:
            with pytest.raises(KeyboardInterrupt):
                async with execution(run.run_id):
                    pytest.fail("It was entered.")

        monkeypatch.setattr(worker, "to_the_end", to_the_end)
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
