"""Measure what ``checkpoint()`` costs while it polls: ``python -m benchmarks.checkpoint``.

``DATABASE_URL`` chooses the database server; the database is made for the occasion.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from timeit import repeat
from typing import Any

LIMIT = 1e-6
"""Seconds that a call may take."""

CALLS = 100_000


def measure(executed: Any, rounds: int = 50) -> list[float]:
    """Return the seconds per call of each round."""
    return [took / CALLS for took in repeat(executed.checkpoint, number=CALLS, repeat=rounds)]


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    import django

    django.setup()
    from django.db import connection

    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        report()
    finally:
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)


def report() -> None:
    from django.db import connection
    from django.test import override_settings

    from django_run_cancel.execution import execution
    from tests.helpers import make_run

    # Polls a hundred times as often as by default, so that many fall into each round.
    with override_settings(RUN_CANCEL_POLL_SECONDS=0.01), execution(make_run().run_id) as executed:
        times = measure(executed)
    time.sleep(0.5)  # for the watcher to disconnect
    median = statistics.median(times)
    sys.stdout.write(
        f"{connection.display_name}: checkpoint() takes {1e9 * min(times):.0f} ns at best, "
        f"{1e9 * median:.0f} ns in the median, {1e9 * max(times):.0f} ns at worst "
        f"(rounds of {CALLS:,} calls)\n"
    )
    if median >= LIMIT:
        sys.exit("That is too much.")


if __name__ == "__main__":
    main()
