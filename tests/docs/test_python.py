"""The names and the code in the documentation exist, and compile."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps

from tests.docs.helpers import TEXT, blocks


class TestPython:
    def test_names_exist(self) -> None:
        for name in set(re.findall(r"\bdjango_run_cancel(?:\.\w+)+", "\n".join(TEXT.values()))):
            if not re.search(r"\.[A-Z]\d{3}$", name):
                assert exists(name), name

    def test_members_exist(self) -> None:
        text = TEXT["reference/python.md"]
        pattern = r"^\.\. auto\w+:: (\S+)\n   :members: (.+(?:\n {4,}.+)*)"
        found = re.findall(pattern, text, flags=re.M)
        assert found
        for name, members in found:
            for member in members.replace("\n", " ").split(","):
                assert exists(f"{name}.{member.strip()}"), (name, member)

    def test_signals_and_exceptions_are_there(self) -> None:
        text = TEXT["reference/python.md"]
        assert ".. automodule:: django_run_cancel.exceptions" in text
        assert "](signals.md)" in text

    @pytest.mark.parametrize(
        ("page", "block"),
        [
            pytest.param(page, block, id=f"{page}-{number}")
            for page, text in TEXT.items()
            for number, block in enumerate(blocks(text))
        ],
    )
    def test_blocks_compile_and_import_what_exists(self, page: str, block: str) -> None:
        for node in ast.walk(ast.parse(block, page)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if node.module.startswith("django_run_cancel"):
                    for alias in node.names:
                        assert exists(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "include":
                import_module(ast.literal_eval(node.args[0]))


def exists(dotted: str) -> bool:
    """Tell whether a dotted name is a module, something in one, a model or a permission."""
    label, _, name = dotted.partition(".")
    if name in {model.__name__ for model in apps.get_app_config(label).get_models()} | {"Run"}:
        return True
    if name in {"cancel_run", "force_cancel_run", "view_run"}:
        return True
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False
