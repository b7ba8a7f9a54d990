"""How many items a second 1, 2 and 4 delivery workers tell together, and how much memory they use.

Run it with ``python -m benchmarks.delivery_workers [--items N] [--save]``. ``DATABASE_URL`` chooses
the server; the database is made for the occasion. The workers are processes of ``manage.py
deliver_cancellations``. Their executor answers at once, so that what remains is the cost of
claiming and recording. The processor time of a worker does not depend on what else the machine
does: if workers get in each other's way, it grows with their number.
"""

from __future__ import annotations

import subprocess
import time
from typing import NamedTuple

from benchmarks.figures import Figures, arguments, own_database
from benchmarks.processes import cpu_seconds, memory, running

WORKERS = (1, 2, 4)
PAUSE = 0.5
"""Seconds between two samples."""


class Sample(NamedTuple):
    """What is seen at one moment; the last two are sums over the workers."""

    at: float
    pending: int
    cpu: float
    megabytes: float


def main() -> None:
    given = arguments(__doc__, items=100_000)
    figures = Figures(
        "delivery_workers",
        *("workers", "pending items", "items a second", "times one worker"),
        *("CPU ms an item", "MB each, after 10%", "MB each, at the end"),
    )
    with own_database():
        one_worker = None
        for workers in WORKERS:
            samples = measure(workers, given.items)
            first, last = samples[0], samples[-1]
            told = first.pending - last.pending
            rate = told / (last.at - first.at)
            one_worker = one_worker or rate
            tenth = next(each for each in samples if each.pending <= 0.9 * given.items)
            figures.add(
                *(workers, given.items, round(rate), round(rate / one_worker, 2)),
                round(1_000 * (last.cpu - first.cpu) / told, 3),
                *(round(each.megabytes / workers, 1) for each in (tenth, last)),
            )
        if given.save:
            figures.save()


def measure(workers: int, items: int) -> list[Sample]:
    """Let workers tell all items; return samples from after their start to before their end."""
    from benchmarks.delivery import fill

    fill(["instant"], items)
    samples = []
    with running(workers, "-m", "django", "deliver_cancellations") as processes:
        while (sample := take_sample(processes)).pending:
            assert all(process.poll() is None for process in processes), "A worker has ended."
            if sample.pending < items:
                samples.append(sample)
            time.sleep(PAUSE)
    return samples


def take_sample(processes: list[subprocess.Popen[bytes]]) -> Sample:
    from django_run_cancel.models import CancellationItem

    pending = CancellationItem.objects.filter(delivery="pending").count()
    cpu, megabytes = (sum(map(measured, processes)) for measured in (cpu_seconds, memory))
    return Sample(time.perf_counter(), pending, cpu, megabytes)


if __name__ == "__main__":
    main()
