"""Figures that benchmarks measure: printed as a table, and saved as JSON for the documentation.

``python -m benchmarks.report`` draws charts and fills tables of the documentation from the saved
files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"


class Figures:
    """The table of figures that one benchmark measures: its columns and rows.

    Args:
        name: Name of the file that has them, without its suffix.
        columns: Headings of the columns, with their units.
        module: Name of the benchmark, if it is another one.
    """

    def __init__(self, name: str, *columns: str, module: str | None = None) -> None:
        self.name = name
        self.columns = columns
        self.module = module or name
        self.rows: list[tuple[Any, ...]] = []

    def add(self, *values: Any) -> None:
        """Add a row and print it, below the headings if it is the first."""
        assert len(values) == len(self.columns)
        if not self.rows:
            print(" | ".join(self.columns))
        self.rows.append(values)
        cells = zip(map(readable, values), self.columns, strict=True)
        print(" | ".join(cell.rjust(len(column)) for cell, column in cells), flush=True)

    def save(self) -> None:
        """Write the rows to the file, with the database and the machine that they are of."""
        FOLDER.mkdir(exist_ok=True)
        about: dict[str, Any] = {
            "module": self.module,
            "database": database_version(),
            "cores": os.cpu_count(),
        }
        about |= {"python": platform.python_version(), "columns": self.columns}
        head = json.dumps(about, indent=2).removesuffix("\n}")
        rows = ",\n    ".join(json.dumps(row) for row in self.rows)
        path = FOLDER / f"{self.name}.json"
        path.write_text(f'{head},\n  "rows": [\n    {rows}\n  ]\n}}\n', "utf-8")
        print(f"saved in {path.relative_to(FOLDER.parent.parent)}")


def readable(value: Any) -> str:
    """Return a value as text; numbers with three digits at least, and commas between thousands."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def database_version() -> str:
    from django.db import connection

    numbers = connection.get_database_version()
    shown = numbers[:1] if connection.vendor == "postgresql" else numbers[:2]
    return f"{connection.display_name} {'.'.join(map(str, shown))}"


def arguments(description: str | None, **defaults: int) -> argparse.Namespace:
    """Return the arguments of the command line: a number for each default, and ``--save``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--save", action="store_true", help="save the figures in docs/figures")
    return parser.parse_args()


@contextmanager
def own_database() -> Iterator[None]:
    """Set Django up and make a database; processes that are started meanwhile use it, too."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    import django

    django.setup()
    from django.db import connection

    from tests.api.servers import database_url

    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    os.environ["DATABASE_URL"] = database_url()
    try:
        yield
    finally:
        connection.close()
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)
