"""How many transactions a second processes need while they execute runs, and what turns that down.

Run it with ``python -m benchmarks.polling [--seconds N] [--processes N] [--save]``.
``DATABASE_URL`` names a server of PostgreSQL, whose own statistics count; the database is made for
the occasion. The executions are coroutines that wait. What does not fit on one machine is computed
from what one process needs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from benchmarks.figures import Figures, arguments, own_database
from benchmarks.processes import call_together


class Settings(NamedTuple):
    """Settings that decide how often a process asks and writes; the defaults come first."""

    poll_seconds: float = 1.0
    heartbeat_seconds: float = 15.0
    listen: bool = False


TURNED_DOWN = Settings(10.0, 60.0)
LISTENING = Settings(60.0, 60.0, True)
EXECUTIONS = (1, 10, 100, 1_000)
COMPUTED = (100, 1_000, 10_000)
"""Numbers of processes with 10 executions each, on paper."""

SETTLING_SECONDS = 10.0
"""For all processes to start before, and to go on after what is measured."""


def main() -> None:
    given = arguments(__doc__, seconds=30, processes=8)
    figures = Figures(
        "polling",
        *("processes", "executions in each", "poll seconds", "heartbeat seconds", "LISTEN"),
        *("transactions a second", "rows written a second", "how"),
    )
    with own_database():
        from django.db import connection

        if connection.vendor != "postgresql":
            sys.exit("DATABASE_URL must name a database of PostgreSQL.")
        cases = [(number, 10) for number in (1, 2, 4, 8, 16) if number <= given.processes]
        for processes, executions in cases + [(1, each) for each in EXECUTIONS if each != 10]:
            report(figures, processes, executions, Settings(), given.seconds)
        compute(figures, figures.rows[0])
        for settings in (TURNED_DOWN, LISTENING):
            report(figures, 1, 10, settings, 4 * given.seconds)
            compute(figures, figures.rows[-1])
        if given.save:
            figures.save()


def report(
    figures: Figures, processes: int, executions: int, settings: Settings, seconds: int
) -> None:
    """Measure a case and add its row."""
    from tests.helpers import ids, make_runs

    made = [ids(make_runs(executions)) for _ in range(processes)]
    parts = [(settings, seconds, processes, run_ids) for run_ids in made]
    # Each process sees what all of them do.
    of_all = [round(each, 2) for each in call_together(execute, parts)[0]]
    intervals = (settings.poll_seconds, settings.heartbeat_seconds)
    listen = "yes" if settings.listen else "no"
    figures.add(processes, executions, *intervals, listen, *of_all, "measured")


def compute(figures: Figures, row: tuple[Any, ...]) -> None:
    """Add rows for more processes that all do as the one of a row."""
    _, executions, *settings, transactions, written, _ = row
    for processes in COMPUTED:
        rates = (round(processes * each, 1) for each in (transactions, written))
        figures.add(processes, executions, *settings, *rates, "computed")


def execute(part: tuple[Settings, int, int, list[str]]) -> tuple[float, float]:
    """Execute runs for some seconds.

    Returns:
        Transactions and written rows a second, of the whole database.
    """
    from django.test import override_settings

    settings, seconds, processes, run_ids = part
    values = {f"RUN_CANCEL_{name.upper()}": each for name, each in settings._asdict().items()}
    with override_settings(**values):
        return asyncio.run(measure_while_executing(run_ids, seconds, processes))


async def measure_while_executing(
    run_ids: list[str], seconds: int, processes: int
) -> tuple[float, float]:
    from asgiref.sync import sync_to_async

    from django_run_cancel.execution import execution

    async with AsyncExitStack() as stack:
        for run_id in run_ids:
            await stack.enter_async_context(execution(run_id))
        await asyncio.sleep(SETTLING_SECONDS)
        before, begin = await sync_to_async(read_statistics)(), time.perf_counter()
        await asyncio.sleep(seconds)
        after, took = await sync_to_async(read_statistics)(), time.perf_counter() - begin
        await asyncio.sleep(SETTLING_SECONDS)
    transactions, written = (b - a for a, b in zip(before, after, strict=True))
    # Without those that have read the statistics: each process has done so once meanwhile.
    return max(transactions - processes, 0) / took, written / took


def read_statistics() -> tuple[int, int]:
    """Return how many transactions there were in this database, and updates of runs."""
    from django.db import connection

    from django_run_cancel.models import get_run_model

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),"
            " (SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = %s)",
            [get_run_model()._meta.db_table],
        )
        transactions, written = cursor.fetchone()
    return transactions, written


if __name__ == "__main__":
    main()
