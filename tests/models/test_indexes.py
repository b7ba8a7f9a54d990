"""How many index entries a change of a run's status writes, and which lists use which index."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from django_run_cancel.cancellation import cancel_runs, record_stopped
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.trees import keys_of, read_closure
from django_run_cancel.execution import execution
from django_run_cancel.execution.watcher import write_heartbeats
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.models.indexes import PartialIndex
from tests.helpers import IS_MYSQL, IS_POSTGRESQL, IS_SQLITE, ids, make_run, make_runs

pytestmark = pytest.mark.django_db

RUN = get_run_model()
MAX_ENTRIES = 7


def index_columns(model: Any) -> list[tuple[str, ...]]:
    """Return the columns of the indexes that the database has, several times if it has several."""
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, model._meta.db_table).values()
    return sorted(tuple(about["columns"]) for about in found if about["index"])


@pytest.mark.parametrize("model", [RUN, CancellationItem])
def test_each_index_exists_once(model: Any) -> None:
    """On MySQL and MariaDB too, where Django makes no index with a condition."""
    found = index_columns(model)
    assert len(found) == len(set(found))
    for index in model._meta.indexes:
        columns = tuple(model._meta.get_field(name).column for name in index.fields)
        assert columns in found, columns


def entries_of(run: Any) -> list[str]:
    """Return the indexes of PostgreSQL that hold the row of a run."""
    table = run._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexrelid::regclass::text, coalesce(pg_get_expr(indpred, indrelid), 'true')"
            " FROM pg_index WHERE indrelid = %s::regclass",
            [table],
        )
        held = []
        for name, predicate in cursor.fetchall():
            cursor.execute(
                f"SELECT 1 FROM {table} WHERE {run._meta.pk.column} = %s AND {predicate}", [run.pk]
            )
            if cursor.fetchone():
                held.append(name)
        return held


@pytest.mark.skipif(not IS_POSTGRESQL, reason="the others write only to indexes of what changes")
class TestEntriesPerChange:
    """A row that changes is written to each index that holds it."""

    @pytest.fixture
    def child(self) -> Any:
        return make_run("created", parent=make_run("running"), tenant="acme")

    @pytest.mark.parametrize(
        "change",
        [
            lambda run: run.mark_queued(),
            lambda run: run.mark_running(),
            lambda run: run.mark_failed("broken"),
            lambda run: run.mark_terminated("gone"),
            lambda run: cancel_runs([run.run_id], requested_by="test"),
        ],
    )
    def test_of_a_waiting_run(self, child: Any, change: Callable[[Any], Any]) -> None:
        change(child)
        assert len(entries_of(child)) <= MAX_ENTRIES

    @pytest.mark.parametrize(
        "change",
        [
            lambda run: run.mark_paused(),
            lambda run: run.mark_completed(),
            lambda run: run.mark_timed_out("slow"),
            lambda run: cancel_runs([run.run_id], requested_by="test"),
        ],
    )
    def test_of_a_running_run(self, child: Any, change: Callable[[Any], Any]) -> None:
        child.mark_running()
        change(child)
        assert len(entries_of(child)) <= MAX_ENTRIES

    def test_of_a_run_that_stops(self, child: Any) -> None:
        child.mark_running()
        cancel_runs([child.run_id], requested_by="test")
        record_stopped([child.run_id], "acknowledged")
        assert len(entries_of(child)) <= MAX_ENTRIES

    def test_item_that_is_done(self) -> None:
        cancel_runs([make_run("running").run_id], requested_by="test")
        item = CancellationItem.objects.get()
        assert any("due_idx" in name for name in entries_of(item))
        item.delivery, item.next_attempt_at = "delivered", None
        item.save()
        assert len(entries_of(item)) == 3


def runs(**lookups: Any) -> QuerySet[Any]:
    return RUN._base_manager.filter(**lookups)


ACTIVE = ("created", "queued", "running", "paused")

LISTS: dict[str, Callable[[], QuerySet[Any]]] = {
    "active": lambda: runs(status__in=ACTIVE).order_by("-created_at", "-pk"),
    "failed": lambda: runs(status__in=["failed"]).order_by("-created_at", "-pk"),
    "running": lambda: runs(status="running").order_by("-created_at", "-pk"),
    "of a tenant": lambda: runs(tenant="t7").order_by("-created_at", "-pk"),
    "of a tenant, queued": lambda: runs(tenant="t7", status__in=["queued"]).order_by("-created_at"),
    "of a tenant, completed": lambda: runs(tenant="t7", status__in=["completed"]).order_by(
        "-created_at", "-pk"
    ),
    "cancelled": lambda: runs(status="cancelled").exclude(stop_state="").order_by("-created_at"),
    "stopping": lambda: runs(stop_state="stopping"),
    "killed": lambda: runs(stop_state="killed").order_by("-created_at", "-pk"),
    "children": lambda: runs(parent__in=[*runs()[:3]]),
    "of a cancellation": lambda: runs(cancellation=Cancellation.objects.get()),
    "to hand over": lambda: runs(dispatch_due_at__lte=DatabaseNow()).order_by("dispatch_due_at"),
    "newest": lambda: runs().order_by("-created_at", "-pk"),
    "of a common type": lambda: runs(run_type="task").order_by("-created_at", "-pk"),
}


@pytest.mark.skipif(IS_MYSQL, reason="has no partial indexes")
class TestPlans:
    """Each list is read through an index, also where that holds some of the runs only."""

    @pytest.fixture
    def large_table(self) -> None:
        """Fill the table with completed runs, and few others."""
        many = [
            RUN(run_id=f"tsk_{number:06}", tenant=f"t{number % 40}", status="completed")
            for number in range(20_000)
        ]
        for number, run in enumerate(many[1:401]):
            run.parent = many[0]
            run.status = ("running", "queued", "failed", "cancelled")[number % 4]
            if run.status == "cancelled":
                run.stop_state = ("stopping", "killed")[number % 8 // 4]
        many[0].save()
        RUN._base_manager.bulk_create(many[1:])
        Cancellation.objects.create(requested_by="test", source="python")
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {RUN._meta.db_table}")

    def test_lists(self, large_table: None) -> None:
        plans = {name: rows()[:50].explain() for name, rows in LISTS.items()}
        without = {
            name: plan
            for name, plan in plans.items()
            if "Seq Scan" in plan or "INDEX" not in plan.upper()
        }
        assert not without

    @pytest.mark.skipif(not IS_SQLITE, reason="asks SQLite for its plan")
    def test_tree(self, large_table: None) -> None:
        """The recursive query joins on a column that may be null."""
        with CaptureQueriesContext(connection) as captured:
            asked = keys_of(runs(run_id="tsk_000000"))
            assert len(read_closure(asked, RUN, "default", 1_000)[1]) == 401
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {captured[0]['sql']}")
            plan = " ".join(str(row) for row in cursor.fetchall())
        assert not re.search(r"SCAN run\b", plan)

    @pytest.mark.skipif(IS_MYSQL, reason="see tests/db/test_trees.py")
    def test_cancelling(self, large_table: None) -> None:
        """PostgreSQL has seen a run with most of the children, and may expect as many of others."""
        (top,) = runs(run_id="tsk_000000")
        RUN._base_manager.exclude(pk=top.pk).update(parent=top, status="completed")
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {RUN._meta.db_table}")
        for count in (1, 100):
            asked = make_runs(count, "running")
            assert self.scanned_by(lambda: cancel_runs(ids(asked), requested_by="test")) == []  # noqa: B023
            asked = make_runs(count, "running")
            make_run("running", parent=make_run("running", parent=asked[0]))
            assert self.scanned_by(lambda: cancel_runs(ids(asked), requested_by="test")) == []  # noqa: B023

    @pytest.mark.skipif(not IS_POSTGRESQL, reason="the others have no partial indexes of statuses")
    def test_rows_of_known_runs(self, large_table: None) -> None:
        """They are found by their keys, even if few runs were active when PostgreSQL looked."""
        RUN._base_manager.update(status="completed", stop_state="")
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {RUN._meta.db_table}")
        make_runs(500)
        run, other = make_runs(2)
        with CaptureQueriesContext(connection) as captured:
            with execution(run.run_id) as executed:
                executed._watch.beat_at = float("-inf")
                write_heartbeats([executed._watch])
                cancel_runs([run.run_id, other.run_id], requested_by="test")
            record_stopped([other.run_id], "killed")
        sent = [entry["sql"] for entry in captured]
        sent = [sql for sql in sent if not sql.startswith(("SAVEPOINT", "RELEASE"))]
        assert len(sent) > 8
        partial = [index.name for index in RUN._meta.indexes if type(index) is PartialIndex]
        for sql in sent:
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN {sql}")
                plan = " ".join(str(row) for row in cursor.fetchall())
            assert not [name for name in partial if name in plan], plan

    def scanned_by(self, call: Callable[[], Any]) -> list[str]:
        """Return the statements of a call that read the whole table of runs."""
        table = RUN._meta.db_table
        explain = "EXPLAIN QUERY PLAN" if IS_SQLITE else "EXPLAIN"
        with CaptureQueriesContext(connection) as captured:
            call()
        found = []
        for statement in (entry["sql"] for entry in captured):
            with connection.cursor() as cursor:
                cursor.execute(f"{explain} {statement}")
                plan = " ".join(str(row) for row in cursor.fetchall())
            if re.search(rf"Seq Scan on {table}|SCAN (child|run|{table})\b", plan):
                found.append(statement)
        return found


@pytest.mark.parametrize("index", RUN._meta.indexes, ids=lambda index: "-".join(index.fields))
def test_migrations_make_the_same_index(index: Any) -> None:
    clone = index.clone()
    assert clone == index
    assert (clone.fields, clone.name) == (index.fields, index.name)
    assert getattr(clone, "where", None) == getattr(index, "where", None)
