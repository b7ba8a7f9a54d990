"""The pages of reference list the settings, checks, signals, commands and states, and no others."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand
from django.dispatch import Signal

import django_run_cancel
from django_run_cancel import admin, backends, checks, signals
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.conf import RunCancelSettings
from django_run_cancel.conf import settings as run_cancel_settings
from django_run_cancel.models import database_checks, get_run_model
from django_run_cancel.models.runs import STATE_FIELDS
from django_run_cancel.states import ACTIVE, SOURCES, RunStatus, StopState
from tests.docs.helpers import (
    DOCS,
    EVERYTHING,
    ROOT,
    TEXT,
    blocks,
    codes,
    first_column,
    named,
    rows,
    section,
)
from tests.helpers import make_run
from tools import diagrams

Capture = Callable[..., Any]


def sources(package: ModuleType) -> Iterator[ast.AST]:
    """Yield the nodes of the source of a module, or of all modules of a package."""
    path = Path(inspect.getfile(package))
    for file in sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]:
        yield from ast.walk(ast.parse(file.read_text("utf-8")))


class TestSettings:
    page = TEXT["reference/settings.md"]

    def test_all_and_only_these(self) -> None:
        assert sorted(named(self.page)) == sorted(run_cancel_settings.names())
        assert set(re.findall(r"\bRUN_CANCEL_[A-Z_]*[A-Z]\b", EVERYTHING)) == set(named(self.page))

    @pytest.mark.parametrize("name", run_cancel_settings.names())
    def test_default(self, name: str) -> None:
        text = section(self.page, f"`{name}`")
        default = re.search(r"^Default: `(.+)`$", text, flags=re.M)
        assert default is not None
        expected = vars(RunCancelSettings)[name.removeprefix("RUN_CANCEL_")]
        assert ast.literal_eval(default[1]) == expected


def test_checks() -> None:
    pattern = r"django_run_cancel\.[A-Z]\d{3}"
    nodes = (
        node for package in (checks, database_checks, backends, admin) for node in sources(package)
    )
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    ids = {text for text in strings if isinstance(text, str) and re.fullmatch(pattern, text)}
    documented = [row[0].strip("`") for row in rows(TEXT["reference/checks.md"])[1:]]
    assert documented == sorted(ids)
    assert set(re.findall(pattern, EVERYTHING)) <= ids


class TestSignals:
    page = TEXT["reference/signals.md"]

    def test_all_and_only_these(self) -> None:
        existing = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
        assert set(named(self.page)) == existing

    @pytest.mark.django_db
    @pytest.mark.parametrize("name", named(TEXT["reference/signals.md"]))
    def test_arguments(self, name: str, django_capture_on_commit_callbacks: Capture) -> None:
        received = []

        def receive(**arguments: Any) -> None:
            received.append(arguments)

        signal: Signal = getattr(signals, name)
        signal.connect(receive)
        try:
            with django_capture_on_commit_callbacks(execute=True):
                cancel_runs([make_run().run_id], requested_by="tests")
        finally:
            signal.disconnect(receive)
        (arguments,) = received
        assert first_column(section(self.page, f"`{name}`")) == [
            argument
            for argument in ("sender", "run_id", "run_ids", "cancellation_id", "stop_state")
            if argument in arguments
        ]
        assert set(arguments) - {"signal"} == set(first_column(section(self.page, f"`{name}`")))


class TestCommands:
    page = TEXT["reference/commands.md"]

    def test_all_and_only_these(self) -> None:
        folder = Path(inspect.getfile(django_run_cancel)).parent / "management" / "commands"
        existing = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert set(named(self.page)) == existing
        mentioned = set(re.findall(r"manage\.py (\w+)", "\n".join(TEXT.values())))
        of_executors = {
            "run_huey",
            "db_worker",
            "procrastinate",
        }  # in hosts that have installed them as apps
        assert mentioned - of_executors <= set(get_commands())

    @pytest.mark.parametrize("name", named(TEXT["reference/commands.md"]))
    def test_arguments(self, name: str) -> None:
        command = load_command_class("django_run_cancel", name)
        parser = ArgumentParser(add_help=False)
        command.add_arguments(parser)  # type: ignore[arg-type]
        assert isinstance(command, BaseCommand)
        existing = [
            action.option_strings[0] if action.option_strings else action.dest
            for action in parser._actions
        ]
        text = section(self.page, f"`{name}`")
        assert first_column(text) == existing
        for option in re.findall(r"--[\w-]+", "\n".join(blocks(text, "console"))):
            assert option in existing

    def test_options_elsewhere(self) -> None:
        options = re.findall(r"create_api_key[^\n]*? (--[\w-]+)", "\n".join(TEXT.values()))
        assert set(options) <= set(first_column(self.page))


class TestStates:
    page = TEXT["explanation.md"]

    def test_transitions(self) -> None:
        table = rows(section(self.page, "Statuses"))[1:]
        assert [codes(row[0])[0] for row in table] == list(RunStatus)
        for status, kind, entered, how in table:
            name = RunStatus(status.strip("`"))
            assert kind == ("active" if name in ACTIVE else "terminal")
            assert set(codes(entered)) == SOURCES[name]
            methods = {code.strip("()") for code in codes(how)}
            assert all(hasattr(get_run_model(), method) for method in methods if "mark_" in method)
            if name not in {RunStatus.CREATED, RunStatus.CANCELLED}:
                assert methods == {f"mark_{name}"}

    def test_stop_states(self) -> None:
        table = rows(section(self.page, "Evidence"))
        assert [codes(row[0])[0] for row in table if row[0][0] == "`"][1:] == [
            StopState.NEVER_STARTED,
            StopState.STOPPING,
            StopState.ACKNOWLEDGED,
            StopState.KILLED,
            StopState.PRESUMED,
        ]

    def test_fields_that_save_leaves_out(self) -> None:
        text = section(TEXT["howto/runs.md"], "What `save()` does not write")
        assert set(codes(text.split(". ")[0])) - {"save()"} == STATE_FIELDS


def test_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for name in ("Python", "Django"):
        versions = [
            text.rsplit(" ", 1)[1]
            for text in project["classifiers"]
            if re.search(rf":: {name} :: \d+\.\d+$", text)
        ]
        assert f"{name} {versions[0]} to {versions[-1]}" in TEXT["index.md"]


def test_diagrams_are_those_of_their_program() -> None:
    for parts in diagrams.DRAWINGS:
        stored = (diagrams.IMAGES / f"{parts.__name__}.svg").read_text("utf-8")
        assert stored == diagrams.drawn(parts), "run: make diagrams"


def test_executors_are_compared_without_empty_cells() -> None:
    table = rows(TEXT["howto/executors.md"])
    assert all(len(row) == len(table[0]) and all(row) for row in table)
    pages = {page.split("/")[-1] for page in TEXT if page.startswith("howto/backends/")}
    assert pages == set(re.findall(r"\(backends/([\w-]+\.md)\)", TEXT["howto/executors.md"]))


def test_changelog_is_included() -> None:
    (included,) = re.findall(r"```\{include\} (\S+)", TEXT["changelog.md"])
    assert (DOCS / included).resolve().is_file()


def test_nothing_of_this_version_is_missing_from_the_promises() -> None:
    """The page that promises says plainly what this version does not do."""
    assert "does not stop code without checkpoints by itself" in " ".join(
        TEXT["explanation.md"].replace("*", "").split()
    )
