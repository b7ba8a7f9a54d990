"""The page about security names tests that exist; and what no request can make the server do."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import django_run_cancel
from tests.docs.helpers import TEXT, headings, rows, section

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(django_run_cancel.__file__).parent
PAGE = TEXT["reference/security.md"]

THREATS = [
    pytest.param(row, id=row[0][:60])
    for heading in headings(PAGE)
    for row in rows(section(PAGE, heading))
    if row[0] != "Threat"
]

CONNECTING = {"http", "urllib", "requests", "httpx", "socket", "subprocess", "smtplib", "ftplib"}

ANSWERING = ("admin", "api", "cancellation", "models", "db")
"""Folders with all that a request can reach. ``urllib.parse`` connects to nothing."""


@cache
def names_in(path: str) -> set[str]:
    """Return the names of the tests of a module, as pytest writes them."""
    names = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{each.name}" for each in node.body if is_test(each)}
        elif is_test(node):
            names.add(node.name)
    return names


def is_test(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


@pytest.mark.parametrize("row", THREATS)
def test_each_threat_has_tests_that_exist(row: list[str]) -> None:
    _, done, _, held_by = row
    assert done
    found = re.findall(r"`([^`:]+)(?:::([^`]+))?`", held_by)
    assert found, "Each threat names the test that holds it."
    for path, name in found:
        assert (name in names_in(path)) if name else names_in(path), (path, name)


def test_page_is_linked() -> None:
    assert "reference/security" in TEXT["index.md"]
    assert "docs/reference/security.md" in (ROOT / "SECURITY.md").read_text("utf-8")


def test_what_answers_requests_connects_to_nothing() -> None:
    imported = {}
    for folder in ANSWERING:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                for name in modules(node):
                    imported.setdefault(name.partition(".")[0], set()).add((path.name, name))
    assert imported["django"], "nothing was looked at"
    for name in CONNECTING:
        assert {each for _, each in imported.get(name, ())} <= {"urllib.parse"}


def modules(node: ast.AST) -> list[str]:
    """Return the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
