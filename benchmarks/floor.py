"""Hand-written SQL that cancels runs: what ``cancel_runs`` is measured against.

It locks the runs in order, inserts the record, updates the runs, and inserts the items, through the
driver's own cursor. It knows the keys of the runs, and nothing of children, scopes and repetitions.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

LOCK = "SELECT id, run_id, status, backend, external_id FROM {run} WHERE {these} ORDER BY id"
RECORD = """
INSERT INTO {record} (cancellation_id, requested_by, user_id, source, request_id, reason, {force},
request_digest, requested_at, total_count, cancelled_count, already_count, failed_count,
cascaded_count, state)
VALUES ({p}, 'floor', '', 'python', '', '', false, '', {now}, {p}, {p}, 0, 0, 0, 'completed')"""
UPDATE = """
UPDATE {run} SET status = 'cancelled', finished_at = {now}, cancellation_id = {p},
stop_state = 'stopping' WHERE {these}"""
ITEMS = """
INSERT INTO {item} (cancellation_id, run_id, outcome, via, previous_status, backend, external_id,
delivery, attempts, next_attempt_at, last_error, {force}, handling, handling_attempts,
handling_error)"""
ROW = """
({p}, {p}, 'cancelled', 'requested', {p}, {p}, {p}, 'pending', 0, {now}, '', false,
'not_needed', 0, '')"""
UNNEST = """
SELECT %s, v.run_id, 'cancelled', 'requested', v.status, v.backend, v.external_id, 'pending', 0,
now(), '', false, 'not_needed', 0, '' FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[])
AS v (run_id, status, backend, external_id)"""


def cancelling_by_hand(pks: list[int]) -> Callable[[], None]:
    """Return a function that cancels the runs with these keys, in ascending order."""
    from django.db import connection

    if connection.vendor == "postgresql":
        return _with_arrays(pks)
    return _with_lists(pks)


def _statements(*texts: str, **parts: str) -> list[str]:
    from django.db import connection

    from django_run_cancel.models import Cancellation, CancellationItem, get_run_model

    tables = {
        "run": get_run_model()._meta.db_table,
        "record": Cancellation._meta.db_table,
        "item": CancellationItem._meta.db_table,
    }
    force = connection.ops.quote_name("force")
    return [text.format(force=force, **tables, **parts) for text in texts]


def _with_arrays(pks: list[int]) -> Callable[[], None]:
    from django.db import connection

    lock, record, update, items = _statements(
        LOCK + " FOR NO KEY UPDATE",
        RECORD + " RETURNING id",
        UPDATE,
        ITEMS + UNNEST,
        these="id = ANY (%s)",
        now="now()",
        p="%s",
    )
    driver: Any = connection.connection

    def run() -> None:
        with driver.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(lock, [pks])
            found = cursor.fetchall()
            cursor.execute(record, [f"can_{uuid.uuid4().hex}", len(pks), len(pks)])
            (key,) = cursor.fetchone()
            cursor.execute(update, [key, pks])
            _, *columns = (list(column) for column in zip(*found, strict=True))
            cursor.execute(items, [key, *columns])
            cursor.execute("COMMIT")

    return run


def _with_lists(pks: list[int]) -> Callable[[], None]:
    from django.db import connection

    is_sqlite = connection.vendor == "sqlite"
    p, now = ("?", "datetime('now')") if is_sqlite else ("%s", "UTC_TIMESTAMP(6)")
    lock, record, update, items, row = _statements(
        LOCK + ("" if is_sqlite else " FOR UPDATE"),
        RECORD,
        UPDATE,
        ITEMS + " VALUES ",
        ROW,
        these=f"id IN ({', '.join([p] * len(pks))})",
        now=now,
        p=p,
    )
    driver: Any = connection.connection

    def run() -> None:
        cursor = driver.cursor()
        cursor.execute("BEGIN IMMEDIATE" if is_sqlite else "BEGIN")
        cursor.execute(lock, pks)
        found = cursor.fetchall()
        cursor.execute(record, [f"can_{uuid.uuid4().hex}", len(pks), len(pks)])
        key = cursor.lastrowid
        cursor.execute(update, [key, *pks])
        if is_sqlite:
            cursor.executemany(items + row, [(key, *values) for _, *values in found])
        else:
            in_rows = [value for _, *values in found for value in (key, *values)]
            cursor.execute(items + ",".join([row] * len(found)), in_rows)
        cursor.execute("COMMIT")
        cursor.close()

    return run
