"""Coroutines are cancelled as ``asyncio.timeout()`` does it, alone and nested."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import execution
from django_run_cancel.states import RunStatus
from tests.execution.helpers import (
    PATIENCE,
    acancel,
    acknowledged,
    cancel,
    current_task,
    elsewhere,
    fresh,
    run_async,
)
from tests.helpers import make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


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

        async def work(run: Any, seconds: float) -> None:
            async with execution(run.run_id):
                await asyncio.sleep(seconds)

        async def main() -> None:
            works = [
                asyncio.create_task(work(run, PATIENCE)),
                asyncio.create_task(work(other, 0.5)),
            ]
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

    def test_one_before_the_block_that_the_code_takes_back(self) -> None:
        run = make_run()

        async def main() -> None:
            task = current_task()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(PATIENCE)
            with pytest.raises(RunCancelled):
                async with execution(run.run_id):
                    task.uncancel()
                    await acancel(run)
                    await asyncio.sleep(PATIENCE)
            assert task.cancelling() == 0

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
