"""The pages of the documentation, and what reads their headings, tables and blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
TEXT = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in PAGES}
OUTSIDE = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
EVERYTHING = "\n".join([*TEXT.values(), *(path.read_text("utf-8") for path in OUTSIDE)])


def headings(text: str) -> list[str]:
    """Return the headings of the second level, and nothing of code blocks."""
    return re.findall(r"^## (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)


def named(text: str) -> list[str]:
    """Return the headings that are code."""
    return [heading.strip("`") for heading in headings(text) if heading.startswith("`")]


def section(text: str, heading: str) -> str:
    return re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of tables."""
    lines = re.findall(r"^\|(.+)\|$", text, flags=re.M)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in cells if row[0] and not row[0].startswith("-")]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def first_column(text: str) -> list[str]:
    """Return what is code in the first column of tables."""
    return [code for row in rows(text) for code in codes(row[0])]


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.S | re.M)


def is_file(block: str) -> bool:
    """Tell whether a block is a file to write, rather than something to run."""
    return re.match(r"# [\w/]+\.py(, at the end)?\n", block) is not None
