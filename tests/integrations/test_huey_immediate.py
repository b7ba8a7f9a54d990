"""Huey tasks of a host in immediate mode: as runs, in the process that calls them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from django_run_cancel.execution import current_run
from django_run_cancel.testing import cancel_now
from tests.services import require_package

require_package("huey")

from huey import MemoryHuey
from huey.api import Huey
from huey.exceptions import TaskException

from django_run_cancel.integrations.huey import cancellable
from tests.integrations.helpers import has_runs, run_of
from tests.integrations.huey_memory import Published


@pytest.fixture
def huey() -> Published:
    return cancellable(Published("published"))


@pytest.mark.django_db(transaction=True)
class TestImmediate:
    @pytest.fixture
    def huey(self) -> Huey:
        return cancellable(MemoryHuey("immediate", immediate=True))

    def test_is_a_run_of_the_same_id(self, huey: Huey) -> None:
        seen = []

        @huey.task(name="inner")
        def inner() -> None:
            pass

        @huey.task(name="add", context=True)
        def add(x: int, y: int = 2, task: Any = None) -> int:
            running = current_run()
            assert running is not None
            assert task.id == running.run_id
            seen.append(inner().id)
            return x + y

        result = add(1, y=3)
        assert result.get() == 4
        run = run_of(result.id)
        assert (run.status, run.backend) == ("completed", "")
        assert run_of(seen[0]).parent == run

    def test_in_an_event_loop__without_a_run(self, huey: Huey, caplog: Any) -> None:
        """The ORM is refused there."""
        seen: list[Any] = []
        note = huey.task(name="note")(lambda: seen.append(current_run()))

        async def call() -> None:
            note()
            note.revoke()
            note()

        asyncio.run(call())
        assert (seen, has_runs()) == ([None], False)
        assert "could not be cancelled" not in caplog.text

    def test_direct_call_is_only_the_function(self, huey: Huey) -> None:
        task = huey.task(name="task")(lambda x: (x, current_run()))
        assert task.call_local(1) == (1, None)
        assert not has_runs()

    def test_retries_and_pipeline(self, huey: Huey) -> None:
        tried = []

        @huey.task(name="fails_first", retries=1)
        def fails_first() -> int:
            tried.append(1)
            if len(tried) == 1:
                raise ValueError("once")
            return 1

        add = huey.task(name="add")(lambda x, y: x + y)
        results = huey.enqueue(fails_first.s().then(add, 2))._results
        assert results[1].get() == 3
        assert [run_of(result.id).status for result in results] == ["completed"] * 2

    def test_cancelled_while_it_runs(self, huey: Huey) -> None:
        @huey.task(name="cancels_itself")
        def cancels_itself() -> None:
            running = current_run()
            assert running is not None
            cancel_now(running.run)
            running.checkpoint()

        result = cancels_itself()
        with pytest.raises(TaskException, match="has been cancelled"):
            result.get()
        assert run_of(result.id).stop_state == "acknowledged"


@pytest.mark.django_db
def test_immediate_in_a_transaction() -> None:
    """As in a TestCase."""
    huey = cancellable(MemoryHuey("immediate", immediate=True))
    result = huey.task(name="task")(lambda: 1)()
    assert (result.get(), run_of(result.id).status) == (1, "completed")
