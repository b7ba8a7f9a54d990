"""Charts and tables of the documentation, from the figures that benchmarks have saved.

Run it with ``python -m benchmarks.report``, after single benchmarks with ``--save``; ``make bench
SAVE=--save`` runs all of them, and this. It draws charts in ``docs/images``, and
replaces what is between the comments ``<!-- figures NAME -->`` and ``<!-- end -->`` of pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import Any

from benchmarks.charts import bar_chart, line_chart
from benchmarks.figures import FOLDER, readable

DOCS = FOLDER.parent
MARKED = re.compile(r"(<!-- figures (\w+) -->\n).*?(<!-- end -->)", re.S)
Rows = list[dict[str, Any]]


def read(name: str) -> dict[str, Any]:
    """Return what a benchmark has saved."""
    saved: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return saved


def rows_of(name: str) -> Rows:
    """Return the rows by heading."""
    saved = read(name)
    return [dict(zip(saved["columns"], row, strict=True)) for row in saved["rows"]]


def points(rows: Iterable[dict[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    return sorted((row[x], row[y]) for row in rows)


def table_size() -> str:
    rows = rows_of("table_size")
    x, y = "runs in the table", "least ms"
    series = {
        f"{count} run{'s' * (count > 1)}": points((r for r in rows if r["ids"] == count), x, y)
        for count in sorted({row["ids"] for row in rows})
    }
    return line_chart("Milliseconds for a cancellation of", x, series, log_x=True)


def tree_shape() -> str:
    rows = [row for row in rows_of("tree_shape") if row["cancelled runs"] > 10]
    chains = (row for row in rows if row["runs side by side"] == 1)
    level = (row for row in rows if row["runs below each other"] == 1)
    x, y = "cancelled runs", "least ms a run"
    series = {"below each other": points(chains, x, y), "side by side": points(level, x, y)}
    return line_chart("Milliseconds a cancelled run", x, series, log_x=True)


def delivery_workers() -> str:
    rate = points(rows_of("delivery_workers"), "workers", "items a second")
    return bar_chart("Items told a second", "delivery workers", {"together": rate})


def cancelling() -> str:
    rows = rows_of("cancelling_postgresql")
    series = {
        "cancel_runs()": points(rows, "ids", "cancel_runs: least ms"),
        "by hand": points(rows, "ids", "by hand: least ms"),
    }
    return bar_chart("Milliseconds for a cancellation", "ids", series)


def polling() -> str:
    rows = [row for row in rows_of("polling") if row["executions in each"] == 10]
    settings = {
        "default": (1.0, "no"),
        "10 s": (10.0, "no"),
        "LISTEN": (60.0, "yes"),
    }
    series = {
        name: points(
            (row for row in rows if (row["poll seconds"], row["LISTEN"]) == values),
            *("processes", "transactions a second"),
        )
        for name, values in settings.items()
    }
    title = "Transactions a second, 10 runs a process"
    return line_chart(title, "processes", series, log_x=True, log_y=True)


CHARTS: dict[str, Callable[[], str]] = {
    "table-size": table_size,
    "tree-shape": tree_shape,
    "delivery-workers": delivery_workers,
    "polling": polling,
    "cancelling": cancelling,
}


def markdown(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yield the lines of a table."""
    columns = list(columns)
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(map(readable, row)) + " |"


def saved_table(name: str) -> Iterator[str]:
    """Yield the lines of a table of saved figures, and where they were measured."""
    saved = read(name)
    yield from markdown(saved["columns"], saved["rows"])
    yield ""
    where = f"on {saved['database']} and {saved['cores']} cores, which the benchmark used, too."
    yield f"`python -m benchmarks.{saved['module']}`, {where}"


RUNS_A_MINUTE = (100, 10_000, 1_000_000)
RUNS_IN_A_PROCESS = 10
CONNECTIONS_OF_A_PROCESS = 2
CANCELLED = 0.01
"""Part of the runs that is cancelled."""


def capacity() -> Iterator[str]:
    """Yield the lines of the table of what a number of runs a minute needs."""
    most = max(row["runs a minute"] for row in rows_of("lifecycle"))
    told = rows_of("delivery_workers")[0]["items a second"]
    process = next(row for row in rows_of("polling") if row["executions in each"] == 10)
    polls, beats = process["transactions a second"], process["rows written a second"]
    by_part: dict[str, list[Any]] = {
        "Processes that execute 10 runs each": [],
        "Their connections": [],
        "Polls and heartbeats a second": [],
        "Rows written a second by heartbeats": [],
        "Rows written a second by starts and ends": [],
        f"Machines like this one, which manages {most:,} runs a minute": [],
        f"Delivery workers, of which one tells {told:,} items a second": [],
        "Runs stored in a month": [],
    }
    for runs in RUNS_A_MINUTE:
        processes = ceil(runs / RUNS_IN_A_PROCESS)
        needed = (
            *(processes, CONNECTIONS_OF_A_PROCESS * processes),
            *(round(processes * polls), round(processes * beats), round(3 * runs / 60)),
            *(ceil(runs / most), ceil(CANCELLED * runs / 60 / told), runs * 60 * 24 * 30),
        )
        for values, value in zip(by_part.values(), needed, strict=True):
            values.append(value)
    heads = ["For so many runs a minute", *(f"{runs:,}" for runs in RUNS_A_MINUTE)]
    yield from markdown(heads, ([part, *values] for part, values in by_part.items()))


def filled(page: str) -> str:
    """Return the text of a page with its tables filled."""

    def replace(found: re.Match[str]) -> str:
        lines = capacity() if found[2] == "capacity" else saved_table(found[2])
        return found[1] + "\n" + "\n".join(lines) + "\n\n" + found[3]

    return MARKED.sub(replace, page)


def outdated() -> dict[Path, str]:
    """Return the files that are not what the saved figures say, with what they should be."""
    expected = {DOCS / "images" / f"{name}.svg": chart() for name, chart in CHARTS.items()}
    for path in DOCS.rglob("*.md"):
        if "_build" not in path.parts:
            expected[path] = filled(path.read_text("utf-8"))
    return {
        path: text
        for path, text in expected.items()
        if not path.exists() or path.read_text("utf-8") != text
    }


def main() -> None:
    for path, text in outdated().items():
        path.write_text(text, "utf-8")
        print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
