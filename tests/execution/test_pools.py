"""A pool with fewer connections than there are threads with tasks. PostgreSQL has them."""

# ruff: noqa: PT012 - what raises is the work, and that is more than a statement

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connection

from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.execution import execution
from django_run_cancel.states import RunStatus, StopState
from tests.execution.helpers import PATIENCE, acknowledged, cancel, fresh, work_on
from tests.helpers import IS_POSTGRESQL, make_run

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("watched"),
    pytest.mark.skipif(not IS_POSTGRESQL, reason="only PostgreSQL has pools"),
]


@pytest.fixture
def pool(transactional_db: None) -> Iterator[Any]:
    connection.close()
    options = connection.settings_dict["OPTIONS"]
    options["pool"] = {"min_size": 1, "max_size": 2, "timeout": 2}
    yield connection.pool
    connection.close()
    connection.close_pool()
    del options["pool"]


@pytest.mark.usefixtures("pool")
def test_tasks_without_a_database() -> None:
    """One connection for this test, one for the thread that looks, none for three tasks."""
    runs = [make_run() for _ in range(3)]
    started = Barrier(4)

    def work(run_id: str) -> None:
        with pytest.raises(RunCancelled), execution(run_id) as executed:
            started.wait(PATIENCE)
            work_on(executed)

    connection.close()
    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(work, run.run_id) for run in runs]
        started.wait(PATIENCE)
        cancel(*runs)
        connection.close()
        for future in futures:
            future.result(PATIENCE)
    assert acknowledged(*runs)


@pytest.mark.usefixtures("pool")
def test_a_connection_that_was_there_stays() -> None:
    run = make_run()
    before = connection.connection
    with execution(run.run_id):
        assert connection.connection is before
    assert connection.connection is before


@pytest.mark.usefixtures("pool")
def test_refused() -> None:
    run = make_run()
    cancel(run)
    connection.close()
    with pytest.raises(RunCancelled), execution(run.run_id):
        pytest.fail("It started.")
    assert connection.connection is None
    assert fresh(run).stop_state == StopState.NEVER_STARTED


def test_without_a_pool__stays_open() -> None:
    run = make_run()
    connection.close()
    with execution(run.run_id):
        assert connection.connection is not None
    assert connection.connection is not None
    assert fresh(run).status == RunStatus.COMPLETED
