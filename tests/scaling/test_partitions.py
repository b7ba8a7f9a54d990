"""Items in partitions, as the documentation makes them, and why runs cannot have any."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import IntegrityError, NotSupportedError, connection, transaction

from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.testing import DummyBackend
from tests.docs.helpers import TEXT, blocks
from tests.execution.helpers import cancel
from tests.faults.helpers import empty_tables, finish_everything
from tests.faults.invariants import assert_rows_sound
from tests.faults.postgres_server import own_server, used_by_django
from tests.helpers import IS_POSTGRESQL, ids, make_run, make_runs

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not IS_POSTGRESQL, reason="The documentation says it of PostgreSQL."),
]

PARTITION, REST, UNFINISHED, DROP = blocks(TEXT["howto/scaling.md"], "sql")
ITEMS = CancellationItem._meta.db_table
BOUND = 10_000_000
"""First id of the second partition."""


@pytest.fixture
def own_server_of_django(transactional_db: None) -> Iterator[None]:
    with own_server() as server, used_by_django(server):
        empty_tables()
        yield


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def result_of(sql: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return int(cursor.fetchone()[0])


def items_in(table: str) -> int:
    return result_of(f"SELECT COUNT(*) FROM {table}")


@pytest.mark.usefixtures("own_server_of_django")
def test_items(dummy: DummyBackend) -> None:
    """Items of both partitions are delivered, and a partition can be dropped afterwards."""
    unpartitioned, partitioned, after_drop = (make_runs(10, "running") for _ in range(3))
    cancel(*unpartitioned)
    execute(PARTITION)
    execute(f"SELECT setval(pg_get_serial_sequence('{ITEMS}', 'id'), {BOUND - 6})")
    cancel(*partitioned)
    assert (items_in("run_cancel_items_1"), items_in("run_cancel_items_2")) == (15, 5)
    assert result_of(UNFINISHED) == 15
    assert deliver_due().delivered == 20
    assert {request.run_id for request, _ in dummy.stopped} == set(ids(unpartitioned + partitioned))
    assert_rows_sound()
    finish_everything()
    assert result_of(UNFINISHED) == 0
    execute(DROP)
    cancel(*after_drop)
    assert deliver_due().delivered == 10
    assert CancellationItem.objects.count() == 15
    Cancellation.objects.all().delete()
    assert not CancellationItem.objects.exists()


@pytest.mark.usefixtures("own_server_of_django")
def test_ids_go_on(dummy: DummyBackend) -> None:
    cancel(*make_runs(10))
    last = CancellationItem.objects.latest("pk").pk
    execute(PARTITION)
    cancel(make_run())
    assert CancellationItem.objects.latest("pk").pk > last


@pytest.mark.usefixtures("own_server_of_django")
def test_ids_without_a_partition() -> None:
    execute(PARTITION)
    execute(f"SELECT setval(pg_get_serial_sequence('{ITEMS}', 'id'), {2 * BOUND})")
    run = make_run()
    with pytest.raises(IntegrityError, match="no partition of relation"):
        cancel(run)
    execute(REST)
    cancel(run)
    assert items_in("run_cancel_items_rest") == 1


@pytest.mark.parametrize("column", ["id", "created_at"])
@pytest.mark.parametrize("model", [get_run_model(), Cancellation])
def test_unique_ids_forbid_partitions(model: type, column: str) -> None:
    table = model._meta.db_table  # type: ignore[attr-defined]  # a model
    column = "requested_at" if (model, column) == (Cancellation, "created_at") else column
    with pytest.raises(NotSupportedError, match="unique constraint"), transaction.atomic():
        execute(
            f"CREATE TABLE parts (LIKE {table} INCLUDING INDEXES) PARTITION BY RANGE ({column})"
        )
