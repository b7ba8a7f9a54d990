"""Generators that are abandoned inside of a block end where Python collects them."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import (
    transaction,
)

from django_run_cancel.execution import execution, ownership, watcher
from django_run_cancel.states import RunStatus
from tests.execution.helpers import fresh, wait_until
from tests.helpers import make_run, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]


class TestAbandoned:
    """A generator that nobody has any more ends where Python happens to collect it."""

    def pages(self, run: Any) -> Iterator[None]:
        with execution(run.run_id) as executed:
            while True:
                executed.checkpoint()
                yield

    def test_in_the_thread_that_asks_the_database(self, monkeypatch: Any) -> None:
        run, other = make_run(), make_run()
        with execution(other.run_id):
            pages = self.pages(run)
            next(pages)
            real, waiting = watcher.poll_runs, [pages]
            del pages

            def poll_runs(executions: Any) -> Any:
                if waiting:
                    with watcher.current._lock:
                        waiting.clear()
                        gc.collect()
                return real(executions)

            finish = ownership.Ownership.finish
            threads: list[str] = []

            def note(held: Any, error: Any) -> Any:
                threads.append(threading.current_thread().name)
                return finish(held, error)

            monkeypatch.setattr(ownership.Ownership, "finish", note)
            monkeypatch.setattr(watcher, "poll_runs", poll_runs)
            wait_until(lambda: fresh(run).status != RunStatus.RUNNING)
            assert run.failure_reason == "GeneratorExit"
            # Not where another statement may be on its way.
            assert threads != [watcher.THREAD_NAME]
        assert fresh(other).status == RunStatus.COMPLETED

    def note_threads(self, monkeypatch: Any) -> list[threading.Thread]:
        """Return a list to which each end of an execution adds its thread."""
        threads: list[threading.Thread] = []
        finish = ownership.Ownership.finish

        def note(held: Any, error: Any) -> Any:
            threads.append(threading.current_thread())
            return finish(held, error)

        monkeypatch.setattr(ownership.Ownership, "finish", note)
        return threads

    def test_where_it_interrupts_nothing(self, monkeypatch: Any) -> None:
        """In the same thread, so that the end is recorded once ``close()`` returns."""
        run, threads = make_run(), self.note_threads(monkeypatch)
        pages = self.pages(run)
        next(pages)
        pages.close()
        assert threads == [threading.current_thread()]
        assert fresh(run).failure_reason == "GeneratorExit"

    def test_in_the_transaction_that_it_was_started_in(self, monkeypatch: Any) -> None:
        """Only this connection has the row as the start has left it."""
        run, threads = make_run(), self.note_threads(monkeypatch)
        with transaction.atomic():
            pages = self.pages(run)
            next(pages)
            pages.close()
        assert threads == [threading.current_thread()]
        assert fresh(run).failure_reason == "GeneratorExit"

    def test_in_the_middle_of_a_transaction_that_is_undone(self) -> None:
        """The collector may come anywhere, also while a driver holds a lock of its own."""
        run = make_run()
        pages = self.pages(run)
        next(pages)
        cycle: list[Any] = [pages]
        cycle.append(cycle)
        gc.disable()
        try:
            del pages, cycle
            with transaction.atomic():
                make_run()
                gc.collect()
                transaction.set_rollback(True)
        finally:
            gc.enable()
        wait_until(lambda: fresh(run).status != RunStatus.RUNNING)
        assert run.failure_reason == "GeneratorExit"

    def test_while_another_is_entered(self, monkeypatch: Any) -> None:
        run, other = make_run(), make_run()
        pages = self.pages(run)
        next(pages)
        waiting = [pages]
        del pages
        real = time.monotonic

        def monotonic() -> float:
            if waiting:
                with watcher.current._lock:  # as where add() holds it
                    waiting.clear()
                    gc.collect()
            return real()

        monkeypatch.setattr(watcher.time, "monotonic", monotonic)
        with execution(other.run_id):
            pass
        wait_until(lambda: fresh(run).status != RunStatus.RUNNING)
        assert statuses(run, other) == [RunStatus.FAILED, RunStatus.COMPLETED]
