"""Mutation testing of the core: changes a random sample of places, and shows what no test notices.

``python -m tools.mutation [--folder db]… [--sample 20] [--seed 1]``, or ``nox -s mutation -- …``.

Cosmic Ray makes the mutants and tries them. Its own program takes every mutant, all with the same
command; this one takes a sample, runs the tests of the folder that a mutant is in, and works in a
copy of the repository. ``DATABASE_URL`` names the database.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).parents[1]
PACKAGE = Path("django_run_cancel")

TESTS = {
    "api": ["tests/api"],
    "cancellation": ["tests/cancellation"],
    # What the statements, and waiting while the database is away, are for.
    "db": [
        *("tests/db", "tests/models", "tests/cancellation", "tests/admin/test_search.py"),
        *("tests/execution/test_gate.py", "tests/execution/test_outages.py"),
    ],
    "delivery": ["tests/delivery"],
    "execution": ["tests/execution"],
    # The checks of databases are a module of models; the migration has the columns.
    "models": [
        *("tests/models", "tests/test_states.py", "tests/test_hosts.py", "tests/cancellation"),
        *("tests/test_checks.py", "tests/test_settings_checks.py"),
    ],
}
"""The tests that should notice a change, by the folder that it is made in."""

SLOW = ("api/test_fuzz.py", "api/test_live.py", "api/test_schema.py", "api/test_schemathesis.py")
"""Tests of the whole that find little more than those beside them."""

PYTEST = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not broker and not browser"]


def main() -> int:
    options = parsed_arguments()
    with tempfile.TemporaryDirectory() as copy:
        copy_repository(Path(copy))
        os.chdir(copy)
        os.environ["PYTHONPATH"] = copy
        with use_db(":memory:", WorkDB.Mode.create) as database:
            sample = sampled(database, options.folder, options.sample, options.seed)
        outcomes: dict[str, Counter[TestOutcome]] = defaultdict(Counter)
        for folder in options.folder:
            chosen = [mutant for mutant in sample if folder_of(mutant) == folder]
            if chosen:
                outcomes[folder].update(outcomes_of(chosen, folder))
    for folder, counter in outcomes.items():
        killed, survived = counter[TestOutcome.KILLED], counter[TestOutcome.SURVIVED]
        print(f"{folder}: {killed + survived} mutants, {killed} killed, {survived} survived")
    return min(1, sum(counter[TestOutcome.SURVIVED] for counter in outcomes.values()))


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Test the tests of the core with mutants.")
    parser.add_argument("--folder", action="append", choices=list(TESTS), help="default: all")
    parser.add_argument("--sample", type=int, default=60, help="number of mutants")
    parser.add_argument("--seed", type=int, help="of the sample; printed if not given")
    options = parser.parse_args()
    options.folder = options.folder or list(TESTS)
    if options.seed is None:
        options.seed = random.randrange(10_000)
    print(f"Seed: {options.seed}", flush=True)
    return options


def copy_repository(folder: Path) -> None:
    """Copy what git knows of: a mutant that outlives this program must harm nobody."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def sampled(database: WorkDB, folders: list[str], count: int, seed: int) -> list[MutationSpec]:
    """Return one mutant of each of so many places; operators alone would weigh comparisons most."""
    paths = [path for folder in folders for path in sorted((PACKAGE / folder).glob("*.py"))]
    init(paths, database, {})
    annotated = {path: set(annotated_places(path)) for path in paths}
    by_place: dict[tuple[Path, tuple[int, int]], list[MutationSpec]] = defaultdict(list)
    for item in database.work_items:
        (mutant,) = item.mutations
        if mutant.start_pos not in annotated[mutant.module_path]:
            by_place[mutant.module_path, mutant.start_pos].append(mutant)
    chooser = random.Random(seed)
    places = chooser.sample(sorted(by_place), min(count, len(by_place)))
    return [
        chooser.choice(sorted(by_place[place], key=lambda each: each.operator_name))
        for place in places
    ]


def annotated_places(path: Path) -> Iterator[tuple[int, int]]:
    """Yield where the ``|`` of annotations may stand: nobody evaluates these."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        annotations = (getattr(node, "annotation", None), getattr(node, "returns", None))
        for each in filter(None, annotations):
            for line in range(each.lineno, each.end_lineno + 1):
                start = each.col_offset if line == each.lineno else 0
                end = each.end_col_offset if line == each.end_lineno else len(lines[line - 1])
                yield from ((line, column) for column in range(start, end))


def folder_of(mutant: MutationSpec) -> str:
    return mutant.module_path.parts[1]


def outcomes_of(mutants: list[MutationSpec], folder: str) -> Iterator[TestOutcome]:
    """Try mutants of one folder, and print each that survives."""
    ignored = [f"--ignore=tests/{name}" for name in SLOW]
    command = [sys.executable, *PYTEST, *ignored, *TESTS[folder]]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    print(f"{folder}: {len(mutants)} mutants, {seconds:.0f} s for all tests", flush=True)
    for number, mutant in enumerate(mutants, 1):
        result = mutate_and_test([mutant], shlex.join(command), timeout=30 + 4 * seconds)
        print(
            f"{number} {mutant.module_path}:{mutant.start_pos[0]} {mutant.operator_name}", end=" "
        )
        print(result.test_outcome and result.test_outcome.value, flush=True)
        if result.test_outcome == TestOutcome.SURVIVED:
            print(result.diff, flush=True)
        elif result.test_outcome != TestOutcome.KILLED:
            raise RuntimeError(result.output)
        yield result.test_outcome


if __name__ == "__main__":
    sys.exit(main())
