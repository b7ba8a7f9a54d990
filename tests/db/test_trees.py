"""Queries over trees of runs, as MySQL and MariaDB get them."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_run_cancel.db.trees import keys_below, keys_of, keys_of_ids, read_closure
from django_run_cancel.models import get_run_model
from tests.api.helpers import statements
from tests.helpers import IS_MYSQL, ids, make_run, make_runs


@pytest.mark.skipif(not IS_MYSQL, reason="the hint is MySQL's")
@pytest.mark.django_db
def test_read_closure__hint_for_mysql(monkeypatch: pytest.MonkeyPatch) -> None:
    """MySQL takes the limit of levels from a hint, which MariaDB reads as a comment."""
    monkeypatch.setattr(connection, "mysql_is_mariadb", False)
    run = make_run()
    child = make_run(parent=run)
    model = get_run_model()
    with statements() as seen:
        closure = read_closure(keys_of_ids(model, [run.run_id], "default"), model, "default", 1_000)
    assert closure == ({run.pk}, {run.pk, child.pk})
    (query,) = seen
    assert ") SELECT /*+ SET_VAR(cte_max_recursion_depth = 1000000) */ pk" in query


@pytest.mark.skipif(not IS_MYSQL, reason="asks MariaDB for its plan")
@pytest.mark.django_db(transaction=True)  # ANALYZE commits
def test_read_closure__of_many_runs_reads_no_others() -> None:
    """The parents of all runs were read, from ten runs on."""
    model = get_run_model()
    scope = model._base_manager.filter(run_id__in=ids(make_runs(5_000))[:100])
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE TABLE {model._meta.db_table}")
        cursor.fetchall()
        with CaptureQueriesContext(connection) as captured:
            read_closure(keys_of(scope), model, "default", 1_000)
        cursor.execute("EXPLAIN WITH " + captured[0]["sql"].partition("WITH ")[2])
        assert ("run", "ref") in {(row[2], row[3]) for row in cursor.fetchall()}
        below = keys_below(scope, "default")
        cursor.execute(f"EXPLAIN {below.sql}", below.params)
        children = [row[3] for row in cursor.fetchall() if row[2] == "child"]
    assert children == ["ref", "ref"]
