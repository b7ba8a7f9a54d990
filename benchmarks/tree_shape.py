"""What a cancellation costs by the depth and the width of the tree below the run.

Run it with ``python -m benchmarks.tree_shape [--rounds N] [--save]``. ``DATABASE_URL`` chooses the
server; the database is made for the occasion.
"""

from __future__ import annotations

import time

from benchmarks.figures import Figures, arguments, own_database

SHAPES = (
    *((1, depth) for depth in (1, 10, 100, 1_000)),
    *((width, 1) for width in (10, 1_000, 10_000)),
    (10, 100),
)
"""Chains below the run, and runs in each of them."""

OTHERS = 100_000
"""Runs that have nothing to do with the tree."""


def main() -> None:
    given = arguments(__doc__, rounds=5, others=OTHERS)
    figures = Figures(
        "tree_shape",
        *("runs side by side", "runs below each other", "cancelled runs", "statements"),
        *("least ms", "least ms a run"),
    )
    with own_database():
        from benchmarks.cancelling import fill

        fill(given.others)
        for width, depth in SHAPES:
            measured = [measure(width, depth) for _ in range(given.rounds)]
            seconds = min(each for each, _ in measured)
            count = width * depth + 1
            figures.add(
                *(width, depth, count, measured[0][1], round(1_000 * seconds, 2)),
                round(1_000 * seconds / count, 3),
            )
        if given.save:
            figures.save()


def measure(width: int, depth: int) -> tuple[float, int]:
    """Return the seconds that cancelling a tree takes, and the number of statements."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from django_run_cancel.cancellation import cancel_runs
    from tests.helpers import make_run

    top = make_run("running")
    make_tree(top, width, depth)
    with CaptureQueriesContext(connection) as captured:
        begin = time.perf_counter()
        result = cancel_runs([top.run_id], requested_by="benchmark")
        seconds = time.perf_counter() - begin
    assert len(result.items) == width * depth + 1
    return seconds, len(captured)


def make_tree(top: object, width: int, depth: int) -> None:
    """Make chains below a run, a level at a time."""
    from django_run_cancel.models import get_run_model

    model = get_run_model()
    above = [top] * width
    for _ in range(depth):
        level = [model(parent=each, status="running") for each in above]  # type: ignore[misc]  # any run model
        above = model._base_manager.bulk_create(level, batch_size=5_000)  # type: ignore[assignment]  # runs


if __name__ == "__main__":
    main()
