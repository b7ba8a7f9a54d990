"""``make diagrams``: the drawings of the documentation, as SVG files in ``docs/images``.

They are 380 units wide, so that a phone shows them at full size, and have colours for light and
dark pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH = 380

STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #1f2328 }
  .small { font-size: 12.5px }
  .strong { font-weight: 700 }
  .page { fill: #ffffff; stroke: #d0d7de }
  .box { fill: #eef2f6; stroke: #57606a }
  .frame { fill: none; stroke: #57606a; stroke-dasharray: 4 3 }
  .line { fill: none; stroke: #57606a; stroke-width: 1.5 }
  .tip { fill: #57606a }
  .stop { fill: #984c00; stroke: none }
  .end { fill: #1f6f2f; stroke: none }
  .grey { fill: #4b4a57; stroke: none }
  .on { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .page { fill: #161b22; stroke: #3d444d }
    .box { fill: #262c36; stroke: #9198a1 }
    .frame, .line { stroke: #9198a1 }
    .tip { fill: #9198a1 }
    .on { fill: #ffffff }
  }
"""

Parts = Iterator[str]


def text(x: float, y: float, words: str, *classes: str, anchor: str = "start") -> str:
    kind = f' class="{" ".join(classes)}"' if classes else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {size} rx="6" class="{kind}"/>'


def labelled(
    x: float, y: float, width: float, height: float, *lines: str, kind: str = "box"
) -> Parts:
    """Yield a box with centred lines, of which the first is its name."""
    yield box(x, y, width, height, kind)
    colour = () if kind == "box" else ("on",)
    first = y + height / 2 + 5 - 9 * (len(lines) - 1)
    for number, line in enumerate(lines):
        weight = "small" if number else "strong"
        yield text(x + width / 2, first + 18 * number, line, weight, *colour, anchor="middle")


def arrow(*points: tuple[float, float]) -> Parts:
    """Yield a line through these points with a tip at the last one."""
    yield f'<polyline points="{" ".join(f"{x:g},{y:g}" for x, y in points)}" class="line"/>'
    (x1, y1), (x2, y2) = points[-2:]
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    dx, dy = (x2 - x1) / length * 8, (y2 - y1) / length * 8
    corners = ((x2, y2), (x2 - dx - dy / 2, y2 - dy + dx / 2), (x2 - dx + dy / 2, y2 - dy - dx / 2))
    yield f'<polygon points="{" ".join(f"{x:g},{y:g}" for x, y in corners)}" class="tip"/>'


def statuses() -> Parts:
    """Statuses of a run, and which status follows which."""
    yield box(12, 12, 356, 182, "frame")
    yield text(24, 32, "Active: the run can be cancelled", "small")
    for x, name in ((24, "created"), (144, "queued"), (264, "running")):
        yield from labelled(x, 66, 92, 34, name)
    yield from labelled(172, 146, 92, 34, "paused")
    yield from arrow((116, 83), (144, 83))
    yield from arrow((236, 76), (264, 76))
    yield from arrow((264, 91), (236, 91))
    yield from arrow((70, 66), (70, 46), (310, 46), (310, 66))
    yield from arrow((288, 100), (288, 158), (264, 158))
    yield from arrow((264, 171), (306, 171), (306, 100))
    yield from arrow((190, 146), (190, 100))
    yield from arrow((340, 100), (340, 246))
    yield from arrow((74, 194), (74, 246))
    yield from arrow((195, 194), (195, 246))
    yield text(82, 214, "cancel_runs()", "small")
    yield text(82, 230, "only", "small")
    yield text(203, 230, "mark_…()", "small")
    yield box(12, 234, 356, 150, "frame")
    yield from labelled(24, 246, 100, 34, "cancelled", kind="stop")
    for number, name in enumerate(("failed", "terminated", "timed_out")):
        yield from labelled(142, 246 + 42 * number, 106, 34, name)
    yield from labelled(262, 246, 98, 34, "completed")
    yield text(24, 320, "Terminal:", "small")
    yield text(24, 338, "nothing leaves", "small")
    yield text(24, 356, "these statuses", "small")


def request() -> Parts:
    """How a request is processed: ways in, the one transaction, and what follows the commit."""
    for y, left, right in (
        (12, "POST /v1/runs/cancel", "admin"),
        (46, "POST /v1/runs/{run_id}/cancel", "manage.py cancel_runs"),
    ):
        for x, width, name in ((12, 196, left), (214, 154, right)):
            yield box(x, y, width, 28)
            yield text(x + width / 2, y + 19, name, "small", anchor="middle")
    yield box(12, 80, 356, 28)
    yield text(190, 99, "Python", "small", anchor="middle")
    yield from arrow((190, 108), (190, 132))
    yield from labelled(105, 132, 170, 34, "cancel_runs()", kind="stop")
    yield from arrow((190, 166), (190, 190))
    yield box(12, 190, 356, 164)
    yield text(24, 213, "One database transaction", "strong")
    for number, step in enumerate(
        (
            "Read which runs are below these runs.",
            "Lock all rows, always in the same order.",
            "Decide, from the locked rows alone.",
            "Write statuses, the record, an item per run.",
            "Start over if children came in between.",
        ),
        1,
    ):
        yield text(24, 215 + 25 * number, f"{number}.", "strong")
        yield text(44, 215 + 25 * number, step)
    yield from arrow((190, 354), (190, 384))
    yield text(200, 374, "commit", "small")
    for y, name, what in (
        (384, "Signals", "run_cancelled, runs_cancelled"),
        (436, "Answer", "each id once: cancelled or failed"),
        (488, "Delivery worker", "tells executors to stop the code"),
    ):
        yield from labelled(52, y, 316, 44, name, what)
    yield '<path d="M190 384 H28 V510" class="line"/>'
    for y in (406, 458, 510):
        yield from arrow((28, y), (52, y))


def stopping() -> Parts:
    """What happens to a cancelled run until its evidence is known: who acts, and when."""
    cards = (
        ("0 s", "cancel_runs() commits", ("The run had not started:",), "never_started", "grey"),
        ("0 s", "", ("The run had started:",), "stopping", "stop"),
        (
            "1 s",
            "Your code",
            (
                "Its process has asked the database.",
                "The next checkpoint() raises",
                "RunCancelled; your code cleans up.",
            ),
            "acknowledged",
            "end",
        ),
        (
            "1 s",
            "Delivery worker → executor",
            (
                "“Drop this task”; with some executors",
                "also “stop this task”. The run stays",
                "as it is until somebody has evidence.",
            ),
            "",
            "",
        ),
        (
            "30 s",
            "Delivery worker → executor",
            ("“Kill this task”, if the executor can.", "It confirms the end:"),
            "killed",
            "end",
        ),
        (
            "300 s",
            "Delivery worker",
            ("Nobody has reported an end.", "The code may have ended, or not:"),
            "presumed",
            "grey",
        ),
    )
    y = last = 12.0
    for moment, who, lines, evidence, kind in cards:
        rows = bool(who) + len(lines)
        height = 14 + 19 * rows + (32 if evidence else 0)
        yield text(54, y + 24, moment, "strong", anchor="end")
        yield box(72, y, 296, height)
        yield f'<circle cx="63" cy="{y + 19:g}" r="4" class="tip"/>'
        if who:
            yield text(84, y + 23, who, "strong")
        for number, line in enumerate(lines, bool(who)):
            yield text(84, y + 23 + 19 * number, line)
        if evidence:
            yield box(84, y + height - 34, 122, 26, kind)
            yield text(145, y + height - 16, evidence, "strong", "on", anchor="middle")
        last, y = y, y + height + 10
    yield f'<path d="M63 31 V{last + 19:g}" class="line"/>'


def production() -> Parts:
    """Processes in production, and who talks to whom."""
    yield from labelled(12, 12, 166, 52, "Clients, operators", "HTTP")
    yield from arrow((95, 64), (95, 104))
    yield from labelled(12, 104, 166, 62, "Web processes", "API and admin")
    yield from labelled(222, 104, 136, 62, "Queue, broker", "of the executor")
    yield from arrow((178, 135), (222, 135))
    yield text(200, 126, "tasks", "small", anchor="middle")
    yield from arrow((95, 166), (95, 226))
    yield text(103, 192, "runs,", "small")
    yield text(103, 208, "cancellations", "small")
    yield from arrow((291, 166), (291, 226))
    yield text(283, 200, "tasks", "small", anchor="end")
    yield from labelled(12, 226, 166, 62, "Database", "all statuses", kind="stop")
    yield from labelled(222, 226, 136, 62, "Task workers", "your code")
    yield from arrow((222, 257), (178, 257))
    yield text(202, 306, "every second: “cancelled?”", "small", anchor="middle")
    yield from arrow((95, 356), (95, 288))
    yield text(103, 332, "what is due", "small")
    yield from labelled(12, 356, 166, 62, "Delivery worker", "one or more")
    yield from arrow((178, 387), (369, 387), (369, 135), (358, 135))
    yield text(361, 378, "“drop”, “kill”", "small", anchor="end")


DRAWINGS: dict[Callable[[], Parts], tuple[int, str]] = {
    statuses: (
        396,
        "Active statuses created, queued, running and paused lead to the terminal statuses "
        "completed, failed, terminated, timed_out and cancelled, which nothing leaves.",
    ),
    request: (
        544,
        "Five ways in call cancel_runs(), which works in one transaction. After the commit come "
        "the signals, the answer and the delivery worker.",
    ),
    stopping: (
        640,
        "A run that had not started has the evidence never_started at once. Otherwise it is "
        "stopping, until it is acknowledged by its code, killed by its executor, or presumed.",
    ),
    production: (
        430,
        "Web processes, task workers and the delivery worker share the database. The delivery "
        "worker tells the executor's broker to drop or kill tasks.",
    ),
}


def drawn(parts: Callable[[], Parts]) -> str:
    height, description = DRAWINGS[parts]
    head = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img"'
    page = f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8" class="page"/>'
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {head}>',
        f"<title>{escape(description)}</title>",
        f"<style>{STYLE}</style>",
        page,
        *parts(),
        "</svg>",
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    for parts in DRAWINGS:
        (IMAGES / f"{parts.__name__}.svg").write_text(drawn(parts), "utf-8")


if __name__ == "__main__":
    main()
