"""Coroutines: blocks inside of blocks, and with task groups inside and outside."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import asyncio

import pytest

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution
from django_run_cancel.states import RunStatus
from tests.execution.helpers import (
    PATIENCE,
    acancel,
    acknowledged,
    current_task,
    run_async,
)
from tests.helpers import make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


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
        started, may_end = asyncio.Event(), asyncio.Event()

        async def work_on_cancelled() -> None:
            with pytest.raises(RunCancelled, match=run.run_id):
                async with execution(run.run_id):
                    started.set()
                    await asyncio.sleep(PATIENCE)
            may_end.set()

        async def work_on_other() -> None:
            async with execution(other.run_id):
                await may_end.wait()

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(work_on_cancelled())
                group.create_task(work_on_other())
                await started.wait()
                await acancel(run)

        run_async(main)
        assert acknowledged(run)
        assert statuses(other) == [RunStatus.COMPLETED]
