"""Charts and tables of measured figures are what the saved figures say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.charts import axis, bar_chart, line_chart, short
from benchmarks.figures import FOLDER, Figures, readable
from benchmarks.report import outdated
from tests.docs.helpers import DOCS, TEXT


def test_documentation_has_the_saved_figures() -> None:
    files = [path.relative_to(DOCS).as_posix() for path in outdated()]
    assert not files, "Run: python -m benchmarks.report"


def test_each_saved_figure_is_shown() -> None:
    pages = (TEXT["howto/scaling.md"], TEXT["reference/performance.md"])
    shown = {name for page in pages for name in re.findall(r"<!-- figures (\w+) -->", page)}
    assert shown - {"capacity"} == {path.stem for path in FOLDER.glob("*.json")}


@pytest.mark.django_db
def test_saved_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    folder = tmp_path / "docs" / "figures"
    folder.parent.mkdir()
    monkeypatch.setattr("benchmarks.figures.FOLDER", folder)
    figures = Figures("example", "clients", "ms")
    figures.add(1, 2.5)
    figures.add(2, 3_000.0)
    figures.save()
    saved = json.loads((folder / "example.json").read_text("utf-8"))
    assert (saved["columns"], saved["rows"]) == (["clients", "ms"], [[1, 2.5], [2, 3_000.0]])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (1234.56, "1,235"), (0.12345, "0.123"), (7, "7"), ("no", "no")],
)
def test_readable(value: object, text: str) -> None:
    assert readable(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(10_000.0, "10k"), (2e6, "2M"), (0.1, "0.1"), (0, "0")]
)
def test_label_of_a_tick(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("values", [[0.3], [7, 12], [1, 99_999]])
@pytest.mark.parametrize("is_logarithmic", [False, True])
def test_axis_has_room_for_all_values(values: list[float], is_logarithmic: bool) -> None:
    found = axis(250, 60, values, is_logarithmic=is_logarithmic)
    places = [found.place(value) for value in sorted(values)]
    assert all(60 <= place <= 250 for place in places)
    assert places == sorted(places, reverse=True)


def test_points_are_drawn_to_scale() -> None:
    drawn = line_chart("A title", "x", {"a": [(0, 0), (5, 10)], "b": [(5, 5)]})
    assert 'points="54.0,250.0 350.0,60.0" class="s0"' in drawn
    assert 'points="350.0,155.0" class="s1"' in drawn


def test_bars_are_drawn_to_scale() -> None:
    drawn = bar_chart("A title", "x", {"a": [(1, 5), (2, 10)]})
    assert re.findall(r'height="([\d.]+)" class="s0"/>$', drawn, re.M)[-2:] == ["95.0", "190.0"]
