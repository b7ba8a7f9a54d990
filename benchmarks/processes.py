"""Processes that benchmarks start: programs, and copies of a function that start together."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_START = multiprocessing.get_context("spawn")


@contextmanager
def running(count: int, *arguments: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run so many processes of ``python ARGUMENTS``, and end them afterwards."""
    processes = [
        subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def memory(process: subprocess.Popen[bytes]) -> float:
    """Return the resident memory of a process in MB, or 0 where the system does not say."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0.0
    (line,) = (line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1_024


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return the processor time that a process has used, or 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def call_together(function: Callable[..., Any], parts: Sequence[Any]) -> list[Any]:
    """Call a function with each part in a process of its own; all begin when all are connected."""
    barrier = _START.Barrier(len(parts))
    with _START.Pool(len(parts), initializer=_prepare, initargs=(barrier,)) as pool:
        return pool.starmap(_call, [(function, part) for part in parts], chunksize=1)


_barrier: Any = None


def _prepare(barrier: Any) -> None:
    global _barrier
    import django

    django.setup()
    _barrier = barrier


def _call(function: Callable[..., Any], part: Any) -> Any:
    from django.db import connection

    connection.ensure_connection()
    _barrier.wait(300)
    return function(part)
