"""Mutation testing of the core: changes a random sample of places, and shows what no test notices.

``python -m tools.mutation [--folder db]… [--module db/locks.py]… [--sample 20] [--seed 1]``, or
``nox -s mutation -- …``. ``DATABASE_URL`` names the database.

Cosmic Ray makes the mutants. Its own program tries every mutant with the same command; this one
takes a sample, spread evenly over the modules, and works in a copy of the repository. It first runs
the tests that reach the changed statement, and the others of the folder only if none of them fails.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
PACKAGE = Path("django_run_cancel")
EQUIVALENTS = "tools/equivalent_mutants*.toml"

TESTS = {
    "api": ["tests/api"],
    "cancellation": ["tests/cancellation"],
    # What the statements, and waiting while the database is away, are for.
    "db": [
        *("tests/db", "tests/models", "tests/cancellation", "tests/admin/test_search.py"),
        *("tests/execution/test_gate.py", "tests/execution/test_outages.py"),
    ],
    "delivery": ["tests/delivery"],
    # Tasks of hosts are executed with more patience than code that has its own block.
    "execution": ["tests/execution", "tests/integrations/test_outages.py"],
    # The checks of databases are a module of models; the migration has the columns.
    "models": [
        *("tests/models", "tests/test_states.py", "tests/test_hosts.py", "tests/cancellation"),
        *("tests/test_checks.py", "tests/test_settings_checks.py"),
    ],
}
"""The tests that should notice a change, by the folder that it is made in."""

SLOW = ("api/test_fuzz.py", "api/test_live.py", "api/test_schemathesis.py")
"""Tests of the whole that find little more than those beside them."""

PYTEST = [
    *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"),
    *("-m", "not broker and not browser"),
]
COVERAGE = ["--cov=django_run_cancel", "--cov-context=test", "--cov-report="]

Contexts = Mapping[str, Mapping[int, list[str]]]
"""The tests that reach a line, by file and line."""


class Mutant(NamedTuple):
    """A changed module.

    Attributes:
        path: Path of the module in the repository.
        lines: Numbers of the lines that are changed.
        before: The text of the module.
        after: The changed text.
    """

    path: Path
    lines: list[int]
    before: str
    after: str

    @property
    def folder(self) -> str:
        return self.path.parts[1]

    @property
    def change(self) -> tuple[str, str]:
        """The changed lines, before and after."""
        differences = list(difflib.ndiff(self.before.splitlines(), self.after.splitlines()))
        removed, added = (
            "\n".join(line[2:].strip() for line in differences if line.startswith(sign))
            for sign in ("- ", "+ ")
        )
        return removed, added

    def __str__(self) -> str:
        removed, added = self.change
        return f"{self.path}:{self.lines[0]}\n- {removed}\n+ {added}"


def main() -> int:
    options = parsed_arguments()
    equivalents = known_equivalents()
    with tempfile.TemporaryDirectory() as copy:
        copy_repository(Path(copy))
        os.chdir(copy)
        # Python would take a module that is changed twice in a second for the one it has compiled.
        os.environ |= {"PYTHONPATH": copy, "PYTHONDONTWRITEBYTECODE": "1"}
        sample = sampled(modules_of(options), options.sample, options.seed)
        survivors: dict[str, list[Mutant]] = {}
        for folder in TESTS:
            if chosen := [mutant for mutant in sample if mutant.folder == folder]:
                survivors[folder] = [*survivors_of(chosen, folder)]
    return print_summary(sample, survivors, equivalents)


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Test the tests of the core with mutants.")
    parser.add_argument("--folder", action="append", choices=list(TESTS), help="default: all")
    parser.add_argument("--module", action="append", help="for example db/locks.py; default: all")
    parser.add_argument("--sample", type=int, default=60, help="number of mutants")
    parser.add_argument("--seed", type=int, help="of the sample; printed if not given")
    options = parser.parse_args()
    for module in options.module or []:
        if module.partition("/")[0] not in TESTS or not (ROOT / PACKAGE / module).is_file():
            parser.error(f"{module} is no module of {', '.join(TESTS)}.")
    if options.seed is None:
        options.seed = random.randrange(10_000)
    print(f"Seed: {options.seed}", flush=True)
    return options


def modules_of(options: argparse.Namespace) -> list[Path]:
    modules = [PACKAGE / module for module in options.module or []]
    folders = options.folder or ([] if modules else list(TESTS))
    return [
        *modules,
        *(path for folder in folders for path in sorted((PACKAGE / folder).glob("*.py"))),
    ]


def known_equivalents() -> set[tuple[str, str, str]]:
    """Return module, old text and new text of the mutants that are known to make no difference."""
    return {
        (each["module"], each["before"], after)
        for file in ROOT.glob(EQUIVALENTS)
        for each in tomllib.loads(file.read_text("utf-8"))["mutants"]
        for after in ([each["after"]] if isinstance(each["after"], str) else each["after"])
    }


def copy_repository(folder: Path) -> None:
    """Copy what git knows of: a mutant that outlives this program must harm nobody."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def sampled(paths: list[Path], count: int, seed: int) -> list[Mutant]:
    """Return one mutant of each of so many places, of each module in turn.

    Of each place one, as operators alone would weigh comparisons most.
    """
    chooser = random.Random(seed)
    by_place: dict[Path, dict[tuple[int, int], list[MutationSpec]]] = defaultdict(
        lambda: defaultdict(list)
    )
    with use_db(":memory:", WorkDB.Mode.create) as database:
        init(paths, database, {})
        for item in database.work_items:
            (spec,) = item.mutations
            by_place[spec.module_path][spec.start_pos].append(spec)
    queues = []
    for path, places in sorted(by_place.items()):
        unread = set(unread_places(path))
        chosen = sorted(place for place in places if place not in unread)
        queues.append([places[place] for place in chooser.sample(chosen, len(chosen))])
    chooser.shuffle(queues)
    in_turn = (specs for turn in zip_longest(*queues) for specs in turn if specs)
    mutants = (
        mutant_of(chooser.choice(sorted(specs, key=lambda each: each.operator_name)))
        for specs in in_turn
    )
    return list(islice(filter(None, mutants), count))


def mutant_of(spec: MutationSpec) -> Mutant | None:
    """Return the mutant, or None if it is no Python: ``*`` before an argument is no operator."""
    before = spec.module_path.read_text("utf-8")
    operator = get_operator(spec.operator_name)(**spec.operator_args)
    after = mutate_code(before, operator, spec.occurrence)
    try:
        compile(after, str(spec.module_path), "exec")
    except SyntaxError:
        return None
    lines = range(spec.start_pos[0], spec.end_pos[0] + 1)
    return Mutant(spec.module_path, list(lines), before, after)


def unread_places(path: Path) -> Iterator[tuple[int, int]]:
    """Yield what only type checkers read: annotations, and the blocks ``if TYPE_CHECKING``."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        unread = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            unread += [node.test, *node.body]
        for each in filter(None, unread):
            for line in range(each.lineno, each.end_lineno + 1):
                start = each.col_offset if line == each.lineno else 0
                end = each.end_col_offset if line == each.end_lineno else len(lines[line - 1])
                yield from ((line, column) for column in range(start, end))


def survivors_of(mutants: list[Mutant], folder: str) -> Iterator[Mutant]:
    """Try mutants of one folder, and yield those that no test notices."""
    ignored = [f"--ignore=tests/{name}" for name in SLOW]
    every_test = [*ignored, *TESTS[folder]]
    began = time.monotonic()
    subprocess.run([*PYTEST, *COVERAGE, *every_test], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    print(f"{folder}: {len(mutants)} mutants, {seconds:.0f} s for all tests", flush=True)
    contexts = read_contexts()
    for number, mutant in enumerate(mutants, 1):
        reaching = tests_that_reach(mutant, contexts)
        # What processes do is not measured: in the end, all tests are run.
        survives = all(
            tests_pass(mutant, tests, 60 + 4 * seconds)
            for tests in filter(None, (reaching, every_test))
        )
        outcome = "survived" if survives else "killed"
        print(f"{number} {mutant.path}:{mutant.lines[0]} {outcome}", flush=True)
        if survives:
            yield mutant


def read_contexts() -> Contexts:
    data = CoverageData()
    data.read()
    return {
        str(Path(file).relative_to(Path.cwd())): data.contexts_by_lineno(file)
        for file in data.measured_files()
    }


def tests_that_reach(mutant: Mutant, contexts: Contexts) -> list[str]:
    """Return the tests that execute the innermost statement around a change.

    None for what is executed on import: most tests depend on that.
    """
    by_line = contexts.get(str(mutant.path), {})
    statements = [
        node
        for node in ast.walk(ast.parse(mutant.before))
        if isinstance(node, ast.stmt) and node.lineno <= mutant.lines[0] <= (node.end_lineno or 0)
    ]
    # A decorator is no part of the function or class that it decorates.
    if not statements:
        return []
    innermost = max(statements, key=lambda node: (node.lineno, -(node.end_lineno or 0)))
    lines = range(innermost.lineno, (innermost.end_lineno or 0) + 1)
    # A context is the id of a test, and which of its parts this is: ``|setup``, ``|run``.
    return sorted(
        {context.rpartition("|")[0] for line in lines for context in by_line.get(line, [])} - {""}
    )


def tests_pass(mutant: Mutant, tests: list[str], timeout: float) -> bool:
    mutant.path.write_text(mutant.after, "utf-8")
    try:
        completed = subprocess.run([*PYTEST, *tests], timeout=timeout, capture_output=True)
        return completed.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        mutant.path.write_text(mutant.before, "utf-8")


def print_summary(
    sample: list[Mutant],
    survivors: Mapping[str, list[Mutant]],
    equivalents: set[tuple[str, str, str]],
) -> int:
    """Print what survived and the rates, and return 1 if a mutant survived that it should not."""
    unknown = {
        folder: [
            mutant
            for mutant in of_folder
            if (str(mutant.path.relative_to(PACKAGE)), *mutant.change) not in equivalents
        ]
        for folder, of_folder in survivors.items()
    }
    for mutant in (mutant for of_folder in unknown.values() for mutant in of_folder):
        print(f"\nSurvived: {mutant}")
    print()
    for folder, of_folder in survivors.items():
        tried = sum(mutant.folder == folder for mutant in sample)
        equivalent = len(of_folder) - len(unknown[folder])
        killed, relevant = tried - len(of_folder), tried - equivalent
        print(
            f"{folder}: {tried} mutants, {equivalent} known as equivalent; of the others"
            f" {killed} of {relevant} killed ({killed / max(relevant, 1):.1%})"
        )
    return int(any(unknown.values()))


if __name__ == "__main__":
    sys.exit(main())
