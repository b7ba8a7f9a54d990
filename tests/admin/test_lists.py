"""The list of runs on a large table: few statements, each with an index, whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.views.main import ALL_VAR
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_run_cancel.admin import base
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.db import trees
from django_run_cancel.models import get_run_model
from tests.admin.helpers import KEYS, LIST, RECORDS, RUN, logged_in, text
from tests.helpers import IS_POSTGRESQL, ids, make_run, make_runs

pytestmark = pytest.mark.django_db

MAX_STATEMENTS = 19

QUERIES = [
    "",
    "?p=3",
    "?status=active",
    "?status=failed",
    "?status__exact=x",
    "?stop_state=stopping",
    "?status=stopping",
    "?run_type=workflow",
    "?tenant=t7",
    "?tenant=",
    "?created_at__gte=2026-01-05+00:00:00%2B00:00&created_at__lt=2026-01-06+00:00:00%2B00:00",
    "?q=tsk_0000000001",
    "?status=running&tenant=t7",
    "?o=4",
    "?q=harbour+library",
]


@pytest.fixture
def operator() -> Client:
    return logged_in("operator", "view_run", "view_job", "cancel_run", "view_cancellation")


def shown(client: Client, query: str) -> list[str]:
    return ids(client.get(LIST + query).context["cl"].result_list)


def test_filters_and_search(operator: Client) -> None:
    running = make_run("running", tenant="acme", run_type="workflow")
    stopping, never = make_run("running"), make_run(tenant="acme")
    cancel_runs(ids([stopping, never]), requested_by="x")
    done = make_run("completed", run_type="crawl")
    assert shown(operator, "?status=active") == ids([running])
    assert shown(operator, "?status=cancelled") == ids([never, stopping])
    assert shown(operator, "?stop_state=stopping") == ids([stopping])
    assert shown(operator, "?run_type=crawl") == ids([done])
    assert shown(operator, "?tenant=acme") == ids([never, running])
    assert shown(operator, "?tenant=") == ids([done, stopping])
    assert shown(operator, "?tenant=acme&status=active") == ids([running])
    assert shown(operator, f"?q={done.run_id[:-1]}") == ids([done])
    assert shown(operator, f"?q={done.run_id.upper()}") == []
    page = text(operator.get(LIST))
    for value in ("?tenant=acme", "?tenant=", "?run_type=crawl", "?run_type=workflow"):
        assert f'href="{value}"' in page
    assert "cancelled, stopping" in page


@pytest.mark.parametrize("name", ["tenant", "status", "stop_state", "run_type", "q", "p", "o"])
@pytest.mark.parametrize("value", ["%00", "x" * 100, "%ED%A0%80", "'", "99999999999999999999"])
def test_anything_may_be_sent(operator: Client, name: str, value: str) -> None:
    make_run()
    assert operator.get(f"{LIST}?{name}={value}").status_code in {200, 302}


@pytest.mark.parametrize(
    ("url", "lookup"),
    [
        *[(LIST, "title__regex=("), (LIST, "title__icontains=x"), (LIST, "metadata__x__regex=(")],
        *[(LIST, "created_at__year=99999999999"), (LIST, "pk__gt=0"), (LIST, "run_id__gt=a")],
        *[(LIST, "cancellation__reason=x"), (RECORDS, "source__regex=("), (KEYS, "digest=x")],
        *[(KEYS, "digest__startswith=a"), (KEYS, "digest__regex=^a"), (KEYS, "id__exact=1")],
    ],
)
def test_lookup_that_no_filter_sends(url: str, lookup: str) -> None:
    """It could read the whole table, fail in the database, or find out what no page shows."""
    chief = logged_in("chief", is_superuser=True)
    make_run()
    assert chief.get(f"{url}?{lookup}").status_code == 400
    assert chief.get(f"{LIST}cancel-all/?{lookup}").status_code == 302


@pytest.mark.parametrize(
    ("url", "lookup"),
    [
        *[(LIST, "parent__exact=1"), (LIST, "created_at__gte=2026-01-01"), (LIST, "nonsense=1")],
        *[(LIST, "cancellation__isnull=True"), (RECORDS, "source__exact=api"), (LIST, "parent=1")],
        *[(RECORDS, "source__in=api,admin"), (KEYS, "read_only__exact=1")],
    ],
)
@pytest.mark.filterwarnings("ignore:DateTimeField")  # as Django's own filters do
def test_lookup_that_filters_and_links_send(url: str, lookup: str) -> None:
    chief = logged_in("chief", is_superuser=True)
    assert chief.get(f"{url}?{lookup}").status_code in {200, 302}


@pytest.mark.parametrize(
    ("url", "lookup"),
    [
        *[(LIST, "created_at__gte=0001-01-01T00:00%2B14:00"), (LIST, "parent__exact=%00")],
        *[(LIST, "created_at__lt=9999-12-31T23:59-12:00"), (RECORDS, "source__exact=%00")],
    ],
)
def test_value_that_no_database_compares(url: str, lookup: str) -> None:
    chief = logged_in("chief", is_superuser=True)
    make_run()
    answer = chief.get(f"{url}?{lookup}")
    # PostgreSQL compares such times as they are.
    assert answer.status_code == 302 or (IS_POSTGRESQL and "created_at" in lookup)
    assert chief.get(f"{LIST}cancel-all/?{lookup}").status_code in {200, 302}


def test_filter_with_a_class_of_its_own(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    page_class = admin.site._registry[get_run_model()]
    monkeypatch.setattr(page_class, "list_filter", [("backend", admin.AllValuesFieldListFilter)])
    run = make_run(backend="celery")
    assert shown(operator, "?backend=celery") == [run.run_id]
    assert operator.get(f"{LIST}?created_at__gte=2026-01-01").status_code == 400


def test_rows_beyond_those_that_are_counted(operator: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(base, "MAX_COUNTED", 150)
    make_runs(150)
    assert operator.get(LIST).context["title"].startswith("Select ")
    oldest = make_run(created_at="2001-01-01T00:00Z", tenant="other")
    listed = operator.get(f"{LIST}?p=2").context
    assert listed["cl"].result_count == 150
    assert listed["title"] == "The first 150 of more; filter or search to see others"
    assert len(listed["cl"].result_list) == 50
    assert shown(operator, "?tenant=other") == ids([oldest])


def test_all_on_one_page(operator: Client) -> None:
    make_runs(150)
    assert len(shown(operator, f"?{ALL_VAR}=")) == 150


@pytest.mark.parametrize("query", QUERIES)
def test_statements(operator: Client, query: str) -> None:
    make_runs(250, "running", tenant="t7")
    cancel_runs(ids(make_runs(20)), requested_by="x")
    with CaptureQueriesContext(connection) as captured:
        operator.get(LIST + query, follow=True)
    sent = [entry["sql"] for entry in captured if "SAVEPOINT" not in entry["sql"]]
    assert len(sent) <= MAX_STATEMENTS, sent


class TestDistinctValues:
    def test_first_ones_in_order(self) -> None:
        for tenant in ("b", "a", "", "B", "a", "c"):
            make_run(tenant=tenant)
        rows = get_run_model()._default_manager.all()
        assert trees.read_distinct(rows, "tenant", 100) == ["", "B", "a", "b", "c"]
        assert trees.read_distinct(rows, "tenant", 2) == ["", "B"]
        assert trees.read_distinct(rows.filter(tenant__in=["c", "a"]), "tenant", 9) == ["a", "c"]
        assert trees.read_distinct(rows.filter(tenant="x"), "tenant", 9) == []
        assert trees.read_distinct(rows.none(), "tenant", 9) == []


@pytest.mark.skipif(not IS_POSTGRESQL, reason="asks PostgreSQL for its plans; see .ci/run")
class TestPlans:
    """No statement of the list reads the whole table, unless to count the runs of a rare type."""

    @pytest.fixture
    def large_table(self) -> None:
        table = RUN.db_table
        other = ", key" if RUN.pk and RUN.pk.column == "key" else ""
        value = ", gen_random_uuid()" if other else ""
        more = (", priority", ", 0") if other else ("", "")
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {table} (run_id, run_type, status, tenant, title, metadata, backend,"
                " external_id, created_at, failure_reason, stop_state"
                f"{other}{more[0]}) SELECT 'tsk_' || lpad(n::text, 12, '0'),"
                " CASE WHEN n % 50 = 0 THEN 'workflow' ELSE 'task' END,"
                " CASE WHEN n % 1000 = 0 THEN 'running' WHEN n % 7 = 0 THEN 'cancelled'"
                " ELSE 'completed' END, 't' || n % 40, '', '{}', '', '',"
                " timestamptz '2026-01-01' + n * interval '10 seconds', '',"
                " CASE WHEN n % 7000 = 0 THEN 'stopping' WHEN n % 7 = 0 THEN 'never_started'"
                f" ELSE '' END{value}{more[1]} FROM generate_series(1, 100000) n"
            )
            cursor.execute(f"ANALYZE {table}")

    def test_indexes_are_used(self, operator: Client, large_table: None) -> None:
        for query in QUERIES:
            with CaptureQueriesContext(connection) as captured:
                operator.get(LIST + query, follow=True)
            about_runs = [entry["sql"] for entry in captured if f'"{RUN.db_table}"' in entry["sql"]]
            assert about_runs
            for statement in about_runs:
                with connection.cursor() as cursor:
                    cursor.execute(f"EXPLAIN {statement}")
                    plan = "\n".join(line for (line,) in cursor.fetchall())
                by_type = "run_type" in query or " WHERE " not in statement
                if "COUNT(*)" in statement and by_type:
                    assert f"LIMIT {base.MAX_COUNTED + 1}" in statement
                else:
                    assert f"Seq Scan on {RUN.db_table}" not in plan, f"{statement}\n{plan}"
