"""What calls cost: checkpoints, the start and the end of an execution, checking an API key.

Run it with ``python -m benchmarks.calls [--save]``. ``DATABASE_URL`` chooses the server; the
database is made for the occasion. Fails if a call takes longer than it may.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from timeit import repeat
from typing import Any

from benchmarks.figures import Figures, arguments, own_database

CALLS = 100_000
ROUNDS = 50


def main() -> None:
    given = arguments(__doc__)
    figures = Figures("calls", "call", "statements", "least µs", "median µs", "limit µs")
    with own_database():
        measure_checkpoints(figures)
        measure_execution(figures)
        measure_key(figures)
        if given.save:
            figures.save()
    slow = [call for call, _, _, median, most in figures.rows if most and median > most]
    if slow:
        sys.exit(f"Too slow: {', '.join(slow)}")


def measure_checkpoints(figures: Figures) -> None:
    """Measure checkpoints while the watcher polls a hundred times as often as by default."""
    from django.test import override_settings

    from django_run_cancel.execution import checkpoint, execution
    from tests.helpers import make_run

    add(figures, "checkpoint(), outside of a run", checkpoint, most=2)
    with override_settings(RUN_CANCEL_POLL_SECONDS=0.01), execution(make_run().run_id) as run:
        add(figures, "checkpoint()", checkpoint, most=2)
        add(figures, "run.checkpoint()", run.checkpoint, most=1)
    time.sleep(0.5)  # for the watcher to disconnect


def add(figures: Figures, name: str, call: Callable[[], Any], *, most: float) -> None:
    seconds = repeat(call, number=CALLS, repeat=ROUNDS)
    figures.add(name, 0, *microseconds([each / CALLS for each in seconds]), most)


def measure_execution(figures: Figures) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from django_run_cancel.execution import execution
    from tests.helpers import make_runs

    starts, ends = [], []
    with CaptureQueriesContext(connection) as captured:
        for run in make_runs(ROUNDS, "queued"):
            before, begun = len(captured), time.perf_counter()
            with execution(run.run_id):
                starts.append((len(captured) - before, time.perf_counter() - begun))
                before, begun = len(captured), time.perf_counter()
            ends.append((len(captured) - before, time.perf_counter() - begun))
    for name, each in (("start of execution()", starts), ("end of execution()", ends)):
        statements = max(count for count, _ in each)
        figures.add(name, statements, *microseconds([took for _, took in each]), "")


def measure_key(figures: Figures) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from django_run_cancel.models import ApiKey

    key = ApiKey.issue("benchmark")[1]
    ApiKey.authenticate(key)  # notes its use, once in a minute
    with CaptureQueriesContext(connection) as captured:
        ApiKey.authenticate(key)
    seconds = repeat(lambda: ApiKey.authenticate(key), number=1, repeat=1_000)
    figures.add("ApiKey.authenticate()", len(captured), *microseconds(seconds), 1_000)


def microseconds(seconds: list[float]) -> tuple[float, float]:
    return round(1e6 * min(seconds), 2), round(1e6 * statistics.median(seconds), 2)


if __name__ == "__main__":
    main()
