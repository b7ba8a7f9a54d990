"""Measure what a cancellation costs beyond its own SQL: ``python -m tests.bench``.

The statements of one call are recorded, and then sent again by the database driver alone, for
other runs of the same kind. Calls and replays take turns, so that a busy machine slows both.
``DATABASE_URL`` chooses the database server; the database is made for the occasion.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

FIRST_RUN, FIRST_RECORD = 10**12, 2 * 10**12
"""Where numeric keys begin here: no other number in the SQL looks like one."""

CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")

VARIANTS = {
    "sqlite": {
        " (WAL, synchronous=OFF: nothing waits for the disk)": [
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = OFF",
        ],
        " (as it comes: rollback journal, synchronous=FULL)": [
            "PRAGMA journal_mode = DELETE",
            "PRAGMA synchronous = FULL",
        ],
    }
}
"""What a cancellation costs on SQLite is mostly how sure it makes of the disk."""

Statement = tuple[str, Sequence[Any]]


@dataclass
class Comparison:
    """Seconds that calls took, and replays of their SQL.

    Attributes:
        run_ids: Ids in each call.
        statements: Statements of each call, those that control the transaction aside.
    """

    run_ids: int
    statements: int = 0
    calls: list[float] = field(default_factory=list)
    replays: list[float] = field(default_factory=list)

    @property
    def ratio_of_minima(self) -> float:
        """The one that noise cannot raise for long."""
        return min(self.calls) / min(self.replays)

    @property
    def ratio_of_medians(self) -> float:
        return statistics.median(self.calls) / statistics.median(self.replays)


def compare(run_ids: int, pairs: int) -> Comparison:
    """Time ``cancel_runs`` and the same SQL without it, in turns, each for runs of its own."""
    begin_keys()
    result = Comparison(run_ids)
    model_runs = make_runs(run_ids)
    with recorded() as statements:
        cancel(model_runs)
    sample = rows(model_runs)
    script = [(sql, params) for sql, params in statements if not is_control(sql)]
    result.statements = len(script)
    with no_collector():
        for number in range(pairs):
            mine, theirs = make_runs(run_ids), rows(make_runs(run_ids))
            replay = prepare_replay(script, sample, theirs)
            jobs = [(partial(cancel, mine), result.calls), (replay, result.replays)]
            for job, times in jobs[:: 1 if number % 2 else -1]:
                times.append(seconds(job))
            check(mine, [run_id for _, run_id in theirs])
    return result


def time_endpoint(run_ids: int, requests: int) -> list[float]:
    """Time requests to the endpoint, in process, by Django's test client."""
    from django_run_cancel.models import ApiKey
    from tests.helpers import ApiClient

    client = ApiClient(ApiKey.issue("bench")[1])
    client.cancel([])  # loads the URLs, and notes that the key is in use
    times = []
    with no_collector():
        for _ in range(requests):
            runs = make_runs(run_ids)
            times.append(seconds(partial(client.cancel, runs)))
            check(runs)
    return times


@contextmanager
def recorded() -> Iterator[list[Statement]]:
    """Yield the list of the statements that are executed meanwhile."""
    from django.db import connection

    statements: list[Statement] = []

    def record(execute: Callable[..., Any], sql: str, params: Any, *args: Any) -> Any:
        statements.append((sql, params or ()))
        return execute(sql, params, *args)

    with connection.execute_wrapper(record):
        yield statements


def is_control(sql: str) -> bool:
    return sql.startswith(CONTROL)


def begin_keys() -> None:
    """Let the numeric keys of runs and records begin where they can be told apart."""
    from django.core.management.color import no_style
    from django.db import connection, models

    from django_run_cancel.models import Cancellation, get_run_model

    firsts: dict[type[models.Model], int] = {
        Cancellation: FIRST_RECORD,
        get_run_model(): FIRST_RUN,
    }
    for model, first in firsts.items():
        if isinstance(model._meta.pk, models.AutoField):
            newest = model._base_manager.order_by("-pk").values_list("pk", flat=True).first()
            row = model._base_manager.create(pk=max(first, (newest or 0) + 1))
            with connection.cursor() as cursor:
                for statement in connection.ops.sequence_reset_sql(no_style(), [model]):
                    cursor.execute(statement)
            row.delete()


def make_runs(count: int) -> list[str]:
    from tests import helpers

    return helpers.ids(helpers.make_runs(count))


def rows(run_ids: list[str]) -> list[tuple[Any, str]]:
    """Return the keys, as the driver has them, and ids of runs, in the order of the keys."""
    from django.db import connection

    from django_run_cancel.models import get_run_model

    meta = get_run_model()._meta
    quote = connection.ops.quote_name
    key, table = quote(meta.pk.column), quote(meta.db_table)
    holders = ", ".join(["%s"] * len(run_ids))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {key}, run_id FROM {table} WHERE run_id IN ({holders}) ORDER BY {key}",
            run_ids,
        )
        return list(cursor.fetchall())


def cancel(run_ids: list[str]) -> None:
    from django_run_cancel.services import cancel_runs

    cancel_runs(run_ids, requested_by="bench")


def check(*groups: list[str]) -> None:
    """Make sure that what was timed has done the work, the same for each group of runs."""
    from django_run_cancel.models import CancellationItem, get_run_model

    for run_ids in groups:
        runs = get_run_model()._default_manager.filter(run_id__in=run_ids, status="cancelled")
        items = CancellationItem.objects.filter(run_id__in=run_ids, outcome="cancelled")
        assert runs.count() == items.count() == len(run_ids)


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep the garbage collector from choosing whose time it takes."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def prepare_replay(
    script: Sequence[Statement], sample: list[tuple[Any, str]], runs: list[tuple[Any, str]]
) -> Callable[[], None]:
    """Return a function that executes the statements for other runs, without Django.

    Args:
        script: The statements of a call for the runs of the sample.
        sample: Keys and ids of these.
        runs: Keys and ids of the other runs.
    """
    from django.db import connection

    from django_run_cancel.ids import new_cancellation_id

    new: dict[Any, Any] = {}
    for (old_key, old_id), (key, run_id) in zip(sample, runs, strict=True):
        new |= {old_key: key, old_id: run_id}
    # The key of the record is known when it has been inserted: a list stands for it until then.
    record_key: list[Any] = []
    name = new_cancellation_id()

    def replace(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("can_"):
            return name
        if isinstance(value, int) and value >= FIRST_RECORD:
            return record_key
        return new.get(value, value)

    qmarks = connection.vendor == "sqlite"
    statements = [
        (qmark(sql, len(params)) if qmarks else sql, [replace(value) for value in params])
        for sql, params in script
    ]
    begin = "BEGIN IMMEDIATE" if qmarks else "BEGIN"
    connection.ensure_connection()
    raw = connection.connection

    def replay() -> None:
        with closing(raw_cursor(raw)) as cursor:
            cursor.execute(begin)
            for sql, params in statements:
                if record_key:
                    [key] = record_key
                    params = [key if value is record_key else value for value in params]
                cursor.execute(sql, params)
                if sql.startswith("INSERT") and not record_key:
                    record_key.append(
                        cursor.fetchone()[0] if "RETURNING" in sql else cursor.lastrowid
                    )
                elif cursor.description:
                    cursor.fetchall()
            cursor.execute("COMMIT")

    return replay


def raw_cursor(raw: Any) -> Any:
    """Return a cursor of the driver's own: Django's connections hand out derived ones."""
    from django.db import connection

    if connection.vendor == "postgresql":
        import psycopg

        return psycopg.ClientCursor(raw)
    if connection.vendor == "sqlite":
        import sqlite3

        return raw.cursor(sqlite3.Cursor)
    return raw.cursor()


def qmark(sql: str, count: int) -> str:
    return sql % (("?",) * count)


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from django.db import connection
    from django.test.utils import setup_test_environment

    setup_test_environment()
    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        for line in report():
            sys.stdout.write(f"{line}\n")
    finally:
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)


def report() -> Iterator[str]:
    """Yield tables in Markdown. Times are the smallest and the median, in milliseconds."""
    import django
    from django.db import connection

    server = ".".join(map(str, connection.get_database_version()))
    for setting, pragmas in VARIANTS.get(connection.vendor, {"": []}).items():
        with connection.cursor() as cursor:
            for pragma in pragmas:
                cursor.execute(pragma)
        yield f"{connection.display_name} {server}{setting}, Django {django.get_version()}"
        yield ""
        yield (
            "| ids | statements | call: min | median | its SQL: min | median "
            "| ratio of medians | of minima | endpoint: min | median |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for run_ids, pairs in ((1, 300), (100, 100)):
            result = compare(run_ids, pairs)
            endpoint = time_endpoint(run_ids, pairs)
            cells = [
                str(run_ids),
                str(result.statements),
                in_milliseconds(result.calls),
                in_milliseconds(result.replays),
                f"{result.ratio_of_medians:.2f}",
                f"{result.ratio_of_minima:.2f}",
                in_milliseconds(endpoint),
            ]
            yield f"| {' | '.join(cells)} |"
        yield ""


def in_milliseconds(times: Sequence[float]) -> str:
    return f"{1000 * min(times):.2f} | {1000 * statistics.median(times):.2f}"


if __name__ == "__main__":
    main()
