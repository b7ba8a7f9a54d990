"""RUN_CANCEL_THREAD_CONTEXT: threads see the rows that the connection of the code sees."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from django.db.models import Q, QuerySet

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution, watcher
from django_run_cancel.execution.thread_context import grouping_key
from django_run_cancel.models import get_run_model
from django_run_cancel.states import StopState
from tests.execution.helpers import PATIENCE, cancel, fresh, wait_until, work_on
from tests.helpers import make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]

visible_tenant: ContextVar[str] = ContextVar("visible_tenant", default="")
"""Whose rows a thread sees, as with a schema per tenant."""


@contextmanager
def see_tenant(tenant: str) -> Iterator[None]:
    token = visible_tenant.set(tenant)
    try:
        yield
    finally:
        visible_tenant.reset(token)


def carry_tenant() -> Callable[[], AbstractContextManager[None]]:
    return partial(see_tenant, visible_tenant.get())


@pytest.fixture
def _rows_by_tenant(monkeypatch: Any) -> None:
    """Let a query find the runs of the visible tenant only."""
    real = QuerySet._fetch_all

    def fetch_all(rows: Any) -> None:
        if rows._result_cache is None and issubclass(rows.model, get_run_model()):
            rows.query.clear_ordering(force=True)
            rows.query.add_q(Q(tenant=visible_tenant.get()))
        real(rows)

    monkeypatch.setattr(QuerySet, "_fetch_all", fetch_all)


@pytest.mark.usefixtures("_rows_by_tenant")
class TestRowsThatDependOnTheConnection:
    def test_code_is_told_and_lives(self, settings: Any) -> None:
        settings.RUN_CANCEL_THREAD_CONTEXT = f"{__name__}.carry_tenant"
        settings.RUN_CANCEL_HEARTBEAT_SECONDS = 0.02
        seen: list[str] = []
        with see_tenant("acme"):
            run = make_run(tenant="acme")
            with pytest.raises(RunCancelled), execution(run.run_id) as executed:
                executed.on_cancel(lambda: seen.append(visible_tenant.get()))
                first = executed.run.heartbeat_at
                wait_until(lambda: executed.checkpoint() or fresh(run).heartbeat_at > first)
                cancel(run)
                work_on(executed)
            assert fresh(run).stop_state == StopState.ACKNOWLEDGED
        assert seen == ["acme"]

    def test_without_the_setting__said_once(self, caplog: Any) -> None:
        with see_tenant("acme"), execution(make_run(tenant="acme").run_id) as executed:
            wait_until(lambda: bool(caplog.messages))
            work_on(executed, 0.2)
        (message,) = caplog.messages
        assert "cannot find it" in message
        assert "RUN_CANCEL_THREAD_CONTEXT" in message

    def test_one_that_is_broken_keeps_no_other_waiting(self, settings: Any, caplog: Any) -> None:
        settings.RUN_CANCEL_THREAD_CONTEXT = f"{__name__}.break_in_threads"
        with execution(make_run().run_id):
            settings.RUN_CANCEL_THREAD_CONTEXT = None
            run = make_run()
            with pytest.raises(RunCancelled), execution(run.run_id) as executed:
                wait_until(lambda: bool(caplog.messages))
                cancel(run)
                work_on(executed)
        (message,) = caplog.messages
        assert message.startswith("Cannot ask whether runs have been cancelled")


def break_in_threads() -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def context() -> Iterator[None]:
        if threading.current_thread().name == watcher.THREAD_NAME:
            raise LookupError("no such tenant")
        yield

    return context


def test_a_setting_that_cannot_be_imported_starts_nothing(settings: Any) -> None:
    settings.RUN_CANCEL_THREAD_CONTEXT = "nowhere.at_all"
    run = make_run()
    with pytest.raises(ImportError), execution(run.run_id):
        pytest.fail("It started.")
    assert fresh(run).started_at is None


def test_executions_with_equal_contexts_share_a_query(
    settings: Any, django_assert_num_queries: Any
) -> None:
    settings.RUN_CANCEL_POLL_SECONDS = PATIENCE
    settings.RUN_CANCEL_THREAD_CONTEXT = f"{__name__}.carry_tenant"
    executions = []
    for tenant in ("acme", "acme", "other"):
        with see_tenant(tenant):
            executions.append(execution(make_run().run_id).__enter__())
    try:
        with django_assert_num_queries(2):
            watcher.poll_now()
    finally:
        for executed in executions:
            executed.__exit__(None, None, None)


def test_contexts_that_cannot_be_compared() -> None:
    context = partial(see_tenant, [])  # type: ignore[arg-type]
    assert grouping_key(context) is context
