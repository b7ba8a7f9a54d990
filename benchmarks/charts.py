"""Charts as SVG files, drawn without a plotting library, in colours for light and dark pages.

A chart has lines through points, or bars side by side. Both axes begin at 0, or are logarithmic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from benchmarks.figures import readable
from tools.diagrams import STYLE, WIDTH, text

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 54.0, 350.0, 60.0, 250.0
"""Where the axes are."""

COLOURS = """
  .s0 { stroke: #0550ae; fill: #0550ae }
  .s1 { stroke: #984c00; fill: #984c00 }
  .s2 { stroke: #1f6f2f; fill: #1f6f2f }
  .s3 { stroke: #6639ba; fill: #6639ba }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  polyline { stroke-width: 2; fill: none !important }
  @media (prefers-color-scheme: dark) {
    .s0 { stroke: #6cb6ff; fill: #6cb6ff }
    .s1 { stroke: #f0883e; fill: #f0883e }
    .s2 { stroke: #57ab5a; fill: #57ab5a }
    .s3 { stroke: #b392f0; fill: #b392f0 }
    .grid { stroke: #3d444d }
  }
"""

Series = Mapping[str, Sequence[tuple[float, float]]]


class Axis(NamedTuple):
    """Where values are drawn: from ``start`` to ``end``, in units of the drawing."""

    start: float
    end: float
    ticks: list[float]
    is_logarithmic: bool

    def place(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        if self.is_logarithmic:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def axis(start: float, end: float, values: Sequence[float], *, is_logarithmic: bool) -> Axis:
    """Return an axis with round ticks that has room for all values."""
    top = max(values)
    if is_logarithmic:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(top))
        ticks = [10.0**power for power in range(low, max(high, low + 1) + 1)]
    else:
        power = 10.0 ** math.floor(math.log10(top / 4))
        step = next(power * each for each in (1, 2, 5, 10) if top / (power * each) <= 5)
        ticks = [step * number for number in range(math.ceil(top / step) + 1)]
    return Axis(start, end, ticks, is_logarithmic)


def line_chart(
    title: str, x_label: str, series: Series, *, log_x: bool = False, log_y: bool = False
) -> str:
    """Return a chart with a line through the points of each series."""
    points = [point for each in series.values() for point in each]
    x_axis = axis(LEFT, RIGHT, [x for x, _ in points], is_logarithmic=log_x)
    y_axis = axis(BOTTOM, TOP, [y for _, y in points], is_logarithmic=log_y)

    def parts() -> Iterator[str]:
        for tick in x_axis.ticks:
            yield text(x_axis.place(tick), BOTTOM + 18, short(tick), "small", anchor="middle")
        for number, each in enumerate(series.values()):
            places = [(x_axis.place(x), y_axis.place(y)) for x, y in each]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            yield f'<polyline points="{line}" class="s{number}"/>'
            for x, y in places:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="s{number}"/>'

    return drawn(title, x_label, list(series), y_axis, parts())


def bar_chart(title: str, x_label: str, series: Series) -> str:
    """Return a chart with a group of bars for each x, and a bar of each series in it."""
    groups = sorted({x for each in series.values() for x, _ in each})
    y_axis = axis(
        BOTTOM, TOP, [y for each in series.values() for _, y in each], is_logarithmic=False
    )
    room = (RIGHT - LEFT) / len(groups)
    width = 0.7 * room / len(series)

    def parts() -> Iterator[str]:
        for place, x in enumerate(groups):
            begin = LEFT + place * room + 0.15 * room
            middle = begin + 0.35 * room
            yield text(middle, BOTTOM + 18, short(x), "small", anchor="middle")
            for number, each in enumerate(series.values()):
                top = y_axis.place(dict(each)[x])
                where = f'x="{begin + number * width:.1f}" y="{top:.1f}"'
                size = f'width="{width:.1f}" height="{BOTTOM - top:.1f}"'
                yield f'<rect {where} {size} class="s{number}"/>'

    return drawn(title, x_label, list(series), y_axis, parts())


def drawn(title: str, x_label: str, names: list[str], y_axis: Axis, parts: Iterator[str]) -> str:
    """Return the file: title, legend, grid, and what is drawn on it."""
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    page = f'width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8" class="page"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}{COLOURS}</style>",
        f'<rect x=".5" y=".5" {page}/>',
        text(12, 22, title, "strong"),
        text((LEFT + RIGHT) / 2, BOTTOM + 40, x_label, "small", anchor="middle"),
    ]
    for number, name in enumerate(names):
        x = 12 + number * (WIDTH - 24) / len(names)
        lines.append(f'<rect x="{x:.0f}" y="34" width="10" height="10" class="s{number}"/>')
        lines.append(text(round(x + 15), 44, name, "small"))
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        lines.append(f'<path d="M{LEFT:g} {y:.1f} H{RIGHT:g}" class="grid"/>')
        lines.append(text(LEFT - 6, round(y + 4, 1), short(tick), "small", anchor="end"))
    return "\n".join([*lines, *parts, "</svg>"]) + "\n"


def short(value: float) -> str:
    """Return a number as the label of a tick, such as 10k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}" if value < 1 else readable(value)
