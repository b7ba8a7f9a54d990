from __future__ import annotations

from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection

from django_run_cancel.db import locks
from django_run_cancel.models import run_rows
from tests.helpers import make_run, statuses, unwritable

pytestmark = pytest.mark.django_db(transaction=True)


def test_update_unlocked__passes_over_what_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = make_run(), make_run()
    with unwritable(bad):
        assert locks.update_unlocked(run_rows(), status="paused") == [good.pk]
    assert statuses(bad, good) == ["queued", "paused"]
    assert bad.run_id in caplog.text


def away(*args: Any) -> Any:
    raise OperationalError("server closed the connection")


def test_update_unlocked__while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no matter of single rows."""
    make_run()
    monkeypatch.setattr(locks, "_update_unlocked", away)
    with pytest.raises(OperationalError, match="closed"):
        locks.update_unlocked(run_rows(), status="paused")


def test_skip_refused_rows__while_the_database_is_away() -> None:
    with pytest.raises(OperationalError, match="closed"), locks.skip_refused_rows("a row"):
        away()


@pytest.mark.parametrize("missing", ["SELECT missing FROM {run}", "SELECT 1 FROM missing"])
def test_skip_refused_rows__before_a_migration(missing: str) -> None:
    """Code that is newer than the tables can write no row."""
    sql = missing.format(run=run_rows().model._meta.db_table)
    with (
        pytest.raises(DatabaseError, match="missing"),
        locks.skip_refused_rows("a row"),
        connection.cursor() as cursor,
    ):
        cursor.execute(sql)
