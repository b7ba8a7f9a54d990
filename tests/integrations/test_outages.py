"""Tasks of a host while the database is away: they wait for it, and none fails for its end."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import asyncio
import ctypes
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import Error, OperationalError, transaction

from django_run_cancel.db import retry
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution.liveness import Liveness, wait_for_owner, wait_for_owner_async
from django_run_cancel.integrations.tracking import TaskMessage, executing, executing_async
from django_run_cancel.states import RunStatus
from tests.execution.helpers import PATIENCE, cancel, database_away, run_async
from tests.helpers import make_run, refusing, statuses
from tests.integrations.helpers import has_status

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]

TASK = TaskMessage("1", "host.task")


class TimeLimit(Exception):
    """As executors raise it, in the handler of a signal or in a thread."""


@pytest.fixture
def impatient(monkeypatch: Any) -> None:
    for name in ("BRIEF_DELAYS", "RETRY_DELAYS", "START_DELAYS"):
        monkeypatch.setattr(retry, name, (0.01,))


def test_patience_is_in_minutes() -> None:
    assert 100 < sum(retry.RETRY_DELAYS) < 150
    assert 500 < sum(retry.START_DELAYS) < 700


class TestStart:
    def test_waits(self, caplog: Any) -> None:
        with database_away() as come_back:
            threading.Timer(0.3, come_back).start()
            with executing(TASK):
                assert has_status("1", RunStatus.RUNNING)
        assert has_status("1", RunStatus.COMPLETED)
        (message,) = [each for each in caplog.messages if "database is unreachable" in each]
        assert message.split(": ")[0].endswith(f"{sum(retry.START_DELAYS):.0f} seconds")

    def test_cancelled_before__is_not_executed(self) -> None:
        run = make_run(run_id="1")
        cancel(run)
        with database_away() as come_back:
            threading.Timer(0.3, come_back).start()
            with pytest.raises(RunCancelled), executing(TASK):
                pytest.fail("It started.")

    @pytest.mark.usefixtures("impatient")
    def test_away_for_good(self) -> None:
        with database_away(), pytest.raises(OperationalError), executing(TASK):
            pytest.fail("It started.")

    def test_no_longer_than_that_by_the_clock(self, monkeypatch: Any) -> None:
        """Each attempt may take long itself."""
        tries = []

        def ask() -> None:
            tries.append(1)
            time.sleep(0.02)
            raise OperationalError("timeout")

        monkeypatch.setattr(retry, "BRIEF_DELAYS", (0.0,))
        with pytest.raises(OperationalError):
            retry.retry_on_outage(ask, using="default", delays=[0.001] * 50)
        assert 2 <= len(tries) < 10

    def test_time_limit_of_a_signal(self, monkeypatch: Any) -> None:
        def limit(signum: int, frame: Any) -> None:
            raise TimeLimit

        monkeypatch.setattr(retry, "BRIEF_DELAYS", (0.01,))
        run = make_run(run_id="1")
        before = signal.signal(signal.SIGALRM, limit)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with database_away(), pytest.raises(TimeLimit), executing(TASK):
                pytest.fail("It started.")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert statuses(run) == [RunStatus.QUEUED]

    def test_time_limit_in_a_thread(self, monkeypatch: Any) -> None:
        """It is raised between two instructions, and not while the thread sleeps."""
        monkeypatch.setattr(retry, "BRIEF_DELAYS", (0.01,))
        monkeypatch.setattr(retry, "START_DELAYS", (PATIENCE,))
        waits, began = threading.Event(), time.monotonic()

        def sleep(seconds: float) -> None:
            waits.set()
            real(seconds)

        def work() -> None:
            with executing(TASK):
                pytest.fail("It started.")

        def interrupt() -> None:
            assert waits.wait(PATIENCE)
            (thread,) = pool._threads
            ident = ctypes.c_ulong(thread.ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(TimeLimit))

        real = retry.time.sleep
        with database_away(), ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
            patch.setattr(retry.time, "sleep", sleep)
            future = pool.submit(work)
            interrupt()
            with pytest.raises(TimeLimit):
                future.result(PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2

    def test_delivered_again(self, settings: Any) -> None:
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 0.01
        run = make_run(RunStatus.RUNNING)
        with database_away() as come_back:
            threading.Timer(0.2, come_back).start()
            assert wait_for_owner(run.run_id) is Liveness.DEAD


class TestEnd:
    def test_waits(self) -> None:
        with executing(TASK):
            away = database_away()
            come_back = away.__enter__()
            threading.Timer(0.3, come_back).start()
        away.__exit__(None, None, None)
        assert has_status("1", RunStatus.COMPLETED)

    @pytest.mark.usefixtures("impatient")
    def test_away_for_good__keeps_its_result(self, caplog: Any) -> None:
        away = database_away()
        try:
            with executing(TASK):
                away.__enter__()
        finally:
            away.__exit__(None, None, None)
        assert "The end of a run could not be recorded." in caplog.messages
        assert has_status("1", RunStatus.RUNNING)

    @pytest.mark.usefixtures("impatient")
    def test_in_a_transaction__is_raised(self) -> None:
        """The transaction is broken: what the task has written in it is not committed."""
        run = make_run(run_id="1")
        with refusing(type(run), "NEW.status = 'completed'"):
            with pytest.raises(Error), transaction.atomic(), executing(TASK):
                run.title = "written by the task"
                run.save()
            assert statuses(run) == [RunStatus.QUEUED]
        run.refresh_from_db()
        assert run.title == ""


class TestCoroutines:
    def test_the_loop_goes_on(self) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        async def main() -> None:
            ticking = asyncio.create_task(tick())
            async with executing_async(TASK):
                pass
            ticking.cancel()

        with database_away() as come_back:
            threading.Timer(0.3, come_back).start()
            run_async(main)
        assert ticks > 10
        assert has_status("1", RunStatus.COMPLETED)

    def test_time_limit(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(retry, "BRIEF_DELAYS", (0.01,))
        run = make_run(run_id="1")

        async def main() -> None:
            async with asyncio.timeout(0.2):
                async with executing_async(TASK):
                    pytest.fail("It started.")

        with database_away(), pytest.raises(TimeoutError):
            run_async(main)
        assert statuses(run) == [RunStatus.QUEUED]

    @pytest.mark.usefixtures("impatient")
    def test_away_for_good__keeps_its_result(self, caplog: Any) -> None:
        async def main() -> None:
            async with executing_async(TASK):
                await sync_to_async(away.__enter__)()

        away = database_away()
        try:
            run_async(main)
        finally:
            away.__exit__(None, None, None)
        assert "The end of a run could not be recorded." in caplog.messages
        assert has_status("1", RunStatus.RUNNING)

    def test_delivered_again(self, settings: Any) -> None:
        settings.RUN_CANCEL_TAKE_OVER_SECONDS = 0.01
        run = make_run(RunStatus.RUNNING)

        async def main() -> None:
            assert await wait_for_owner_async(run.run_id) is Liveness.DEAD

        with database_away() as come_back:
            threading.Timer(0.2, come_back).start()
            run_async(main)
