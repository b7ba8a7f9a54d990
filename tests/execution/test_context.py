"""Code that is given no execution: checkpoint(), current_run() and on_cancel() find it."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import checkpoint, current_run, execution, on_cancel
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import PATIENCE, cancel, elsewhere, fresh, wait_until, work_on
from tests.helpers import make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


def work_with_checkpoints() -> None:
    """Work as a library does, which knows no execution, until the run is cancelled."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        checkpoint()
        time.sleep(0.002)


async def work_in_coroutines() -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        checkpoint()
        await asyncio.sleep(0.002)


class TestOutsideOfARun:
    def test_does_nothing(self) -> None:
        called: list[str] = []
        assert current_run() is None
        checkpoint()
        on_cancel(lambda: called.append("called"))
        assert called == []

    def test_does_nothing_in_a_coroutine(self) -> None:
        async def main() -> None:
            assert current_run() is None
            checkpoint()

        asyncio.run(main())

    def test_after_a_run(self) -> None:
        with pytest.raises(ValueError, match="bad"), execution(make_run().run_id):
            raise ValueError("bad")
        assert current_run() is None

    def test_after_a_run_that_did_not_start(self) -> None:
        run = make_run()
        cancel(run)
        with pytest.raises(RunCancelled), execution(run.run_id):
            pytest.fail("It started.")
        assert current_run() is None


class TestInsideOfARun:
    def test_checkpoint(self) -> None:
        run = make_run()
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            assert current_run() is executed
            elsewhere(cancel, run)
            work_with_checkpoints()
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_on_cancel(self) -> None:
        run, called = make_run(), threading.Event()
        with execution(run.run_id):
            on_cancel(called.set)
            with pytest.raises(ValueError, match="seconds above 0"):
                on_cancel(called.set, deadline=0)
            cancel(run)
            assert called.wait(PATIENCE)

    def test_coroutines(self) -> None:
        run = make_run()

        async def main() -> None:
            async with execution(run.run_id) as executed:
                assert current_run() is executed
                elsewhere(cancel, run)
                await asyncio.gather(work_in_coroutines())

        with pytest.raises(RunCancelled):
            async_to_sync(main)()
        assert current_run() is None
        assert fresh(run).stop_state == StopState.ACKNOWLEDGED

    def test_each_task_has_its_own(self) -> None:
        runs = [make_run() for _ in range(5)]

        async def work(run: Any) -> None:
            async with execution(run.run_id) as executed:
                await asyncio.sleep(0)
                assert current_run() is executed
                assert await sync_to_async(current_run)() is executed
                assert await asyncio.to_thread(current_run) is executed

        async def main() -> None:
            await asyncio.gather(*map(work, runs))
            assert current_run() is None

        async_to_sync(main)()
        assert statuses(*runs) == [RunStatus.COMPLETED] * 5

    def test_threads(self) -> None:
        with execution(make_run().run_id) as executed, ThreadPoolExecutor(1) as pool:
            assert pool.submit(current_run).result() is None
            assert pool.submit(copy_context().run, current_run).result() is executed


class TestNesting:
    def test_the_inner_one_wins(self) -> None:
        outer, inner = make_run(), make_run()
        with execution(outer.run_id) as around:
            with pytest.raises(RunCancelled) as caught, execution(inner.run_id) as within:
                assert current_run() is within
                cancel(inner)
                work_with_checkpoints()
            assert caught.value.run_id == inner.run_id
            assert current_run() is around
            checkpoint()
        assert current_run() is None

    def test_generators_that_are_left_in_another_order(self) -> None:
        def pages(run: Any) -> Iterator[None]:
            with execution(run.run_id):
                yield

        work = pages(make_run())
        next(work)
        generator = current_run()
        with execution(make_run().run_id) as executed:
            next(work, None)
            assert current_run() is executed
        assert generator is not None
        assert current_run() is None

    def test_a_generator_that_is_left_in_another_thread(self) -> None:
        def pages(run: Any) -> Iterator[None]:
            with execution(run.run_id):
                yield

        work = pages(make_run())
        next(work)
        elsewhere(next, work, None)
        assert current_run() is None

    def test_handed_back(self) -> None:
        """The code is still in its block."""
        run = make_run()
        with execution(run.run_id) as executed:
            executed.hand_back()
            assert current_run() is executed


class TestEach:
    def test_items(self) -> None:
        with execution(make_run().run_id) as run:
            assert list(run.each("abc")) == ["a", "b", "c"]

    def test_stops_between_two(self) -> None:
        run, seen = make_run(), []
        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            for number in executed.each(range(5)):
                seen.append(number)
                if number == 2:
                    cancel(run)
                    with pytest.raises(RunCancelled):
                        work_on(executed)
        assert seen == [0, 1, 2]

    def test_before_the_first_is_fetched(self) -> None:
        run, fetched = make_run(), []

        def pages() -> Iterator[int]:
            fetched.append(0)
            yield 0

        with pytest.raises(RunCancelled), execution(run.run_id) as executed:
            cancel(run)
            with pytest.raises(RunCancelled):
                work_on(executed)
            list(executed.each(pages()))
        assert fetched == []

    def test_async_items(self) -> None:
        run, seen = make_run(), []

        async def pages() -> AsyncIterator[int]:
            for number in range(5):
                yield number

        async def main() -> None:
            async with execution(run.run_id) as executed:
                async for number in executed.each(pages()):
                    seen.append(number)
                    if number == 2:
                        elsewhere(cancel, run)
                        # Not await: the task is not cancelled here.
                        wait_until(lambda: executed.cancel_requested)

        with pytest.raises(RunCancelled):
            async_to_sync(main)()
        assert seen == [0, 1, 2]

    def test_all_async_items(self) -> None:
        async def pages() -> AsyncIterator[int]:
            yield 1

        async def main() -> list[int]:
            async with execution(run.run_id) as executed:
                return [number async for number in executed.each(pages())]

        run = make_run()
        assert async_to_sync(main)() == [1]


class TestHeartbeatOfTheProcess:
    """For tasks whose code never asks: that the process lives proves them alive."""

    def test_is_written_without_checkpoints(self, settings: Any) -> None:
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.02
        run = make_run()
        with execution(run.run_id, heartbeat="process"):
            first = fresh(run).heartbeat_at
            wait_until(lambda: fresh(run).heartbeat_at > first)
            second = fresh(run).heartbeat_at
            wait_until(lambda: fresh(run).heartbeat_at > second)

    def test_another_word(self) -> None:
        with pytest.raises(ValueError, match="heartbeat must be"):
            execution("tsk_1", heartbeat="never")  # type: ignore[arg-type]
