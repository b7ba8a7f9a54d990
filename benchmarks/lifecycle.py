"""How many runs a minute processes create, start and end together, with nothing to do in between.

Run it with ``python -m benchmarks.lifecycle [--runs N] [--save]``. ``DATABASE_URL`` chooses the
server; the database is made for the occasion. It is the most that this machine can do, with the
processes and the database server on it.
"""

from __future__ import annotations

import time

from benchmarks.figures import Figures, arguments, own_database
from benchmarks.processes import call_together

PROCESSES = (1, 2, 4, 8)


def main() -> None:
    given = arguments(__doc__, runs=500)
    figures = Figures("lifecycle", "processes", "runs a minute", "times one process")
    with own_database():
        alone = None
        for processes in PROCESSES:
            rates = call_together(work, [given.runs] * processes)
            alone = alone or sum(rates)
            figures.add(processes, round(60 * sum(rates)), round(sum(rates) / alone, 2))
        if given.save:
            figures.save()


def work(runs: int) -> float:
    """Return how many runs a second this process creates, starts and ends."""
    from django_run_cancel.execution import execution
    from django_run_cancel.models import get_run_model

    rows = get_run_model()._base_manager
    begin = time.perf_counter()
    for _ in range(runs):
        with execution(rows.create(status="queued").run_id):
            pass
    return runs / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
