from __future__ import annotations

import pytest
from django.db import connection

from django_run_cancel.db.trees import read_closure
from django_run_cancel.models import get_run_model
from tests.api.helpers import statements
from tests.helpers import make_run


@pytest.mark.skipif(connection.vendor != "mysql", reason="the hint is MySQL's")
@pytest.mark.django_db
def test_read_closure__hint_for_mysql(monkeypatch: pytest.MonkeyPatch) -> None:
    """MySQL takes the limit of levels from a hint, which MariaDB reads as a comment."""
    monkeypatch.setattr(connection, "mysql_is_mariadb", False)
    run = make_run()
    child = make_run(parent=run)
    model = get_run_model()
    with statements() as seen:
        closure = read_closure(model._base_manager.filter(pk=run.pk), model, "default", 1_000)
    assert closure == ({run.pk}, {run.pk, child.pk})
    (query,) = seen
    assert ") SELECT /*+ SET_VAR(cte_max_recursion_depth = 1000000) */ pk" in query
