"""How many statements a cancellation takes: few, whatever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import get_run_model
from django_run_cancel.states import RunStatus
from tests.helpers import IS_MYSQL, IS_POSTGRESQL, ApiClient, ids, make_run, make_runs

# Locks, children, record, statuses, items; PostgreSQL writes the last three at once.
OF_CHILDLESS = 3 if IS_POSTGRESQL else 5
# And the keys, of runs that turned out to have children when they were to be locked. PostgreSQL
# reads those of each level, and of the next one, which is empty.
OF_TREES = OF_CHILDLESS + (5 if IS_POSTGRESQL else 2)
if IS_MYSQL:
    OF_CHILDLESS = OF_TREES = 6

CONTROL = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")


def with_children(count: int) -> list[str]:
    """Create runs, each with a child and a grandchild; return the ids of the topmost."""
    above = runs = make_runs(count)
    model = get_run_model()
    for _ in range(2):
        above = model._default_manager.bulk_create([model(parent=run) for run in above])
    return ids(runs)


def without_children(count: int) -> list[str]:
    return ids(make_runs(count))


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Collect statements, without those that begin and end transactions."""
    found: list[str] = []
    with CaptureQueriesContext(connection) as captured:
        yield found
    found += [query["sql"] for query in captured if not query["sql"].startswith(CONTROL)]


kinds = pytest.mark.parametrize(
    ("make", "expected"), [(without_children, OF_CHILDLESS), (with_children, OF_TREES)]
)
counts = pytest.mark.parametrize("count", [1, 100])


@kinds
@counts
@pytest.mark.parametrize("key", [None, "a key"])
@pytest.mark.django_db
def test_any_number_of_ids(
    make: Callable[[int], list[str]], expected: int, count: int, key: str | None
) -> None:
    run_ids = make(count)
    with recorded() as statements:
        cancel_runs(run_ids, requested_by="test", idempotency_key=key)
    # A record whose key may be taken has a statement of its own.
    assert len(statements) == expected + bool(key and IS_POSTGRESQL)


@kinds
@counts
@pytest.mark.django_db(transaction=True)
def test_in_a_transaction_of_its_own(
    make: Callable[[int], list[str]], expected: int, count: int
) -> None:
    """It can begin again, and looks for children when it has written: PostgreSQL does both at once.

    SQLite, and MySQL and MariaDB, need a statement for it.
    """
    run_ids = make(count)
    with recorded() as statements:
        cancel_runs(run_ids, requested_by="test")
    assert len(statements) == expected - IS_POSTGRESQL


@pytest.mark.django_db
def test_nothing_to_cancel() -> None:
    run_ids = ids(make_runs(50, RunStatus.COMPLETED)) + [f"tsk_{number}" for number in range(50)]
    with recorded() as statements:
        cancel_runs(run_ids, requested_by="test")
    assert len(statements) <= OF_CHILDLESS


@pytest.mark.django_db
def test_endpoint(api: ApiClient) -> None:
    api.cancel([])  # notes that the key is in use
    for count in (1, 100):
        run_ids = without_children(count)
        with recorded() as statements:
            assert api.cancel(run_ids).status_code == 200
        # One more than the service's: the key's.
        assert len(statements) == OF_CHILDLESS + 1


@pytest.mark.django_db
def test_deep_chain() -> None:
    """Deeper than MySQL and MariaDB follow a recursive query by default."""
    top = above = make_run("running")
    for _ in range(1_100):
        above = get_run_model()._base_manager.create(parent=above, status="running")
    with recorded() as statements:
        result = cancel_runs([top.run_id], requested_by="test")
    assert len(result.items) == 1_101
    assert len(statements) < 30
    assert not get_run_model()._base_manager.exclude(status="cancelled").exists()


@pytest.mark.django_db
def test_deep_chain__leaves_the_settings_of_the_session() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("PostgreSQL is told to use the index")
    top = above = make_run()
    for _ in range(6):
        above = get_run_model()._base_manager.create(parent=above)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = on")
        cancel_runs([top.run_id], requested_by="test")
        cursor.execute("SHOW enable_seqscan")
        assert cursor.fetchone() == ("on",)
