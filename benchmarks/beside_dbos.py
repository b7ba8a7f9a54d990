"""What cancelling 1 and 100 queued runs costs against DBOS's ``cancel_workflows``, in turn.

Run it with ``python -m benchmarks.beside_dbos [--rounds N] [--save]``. ``DATABASE_URL`` names a
server of PostgreSQL; both databases are made for the occasion. DBOS is installed in a virtual
environment of its own, ``.venv-dbos``. Its ``cancel_workflows`` is one UPDATE; ``cancel_runs`` also
looks for descendants, and writes a record and an item for each run.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Figures, arguments, own_database

ROOT = Path(__file__).resolve().parent.parent
VERSION = "3.4.0"
COUNTS = (1, 100)


def main() -> None:
    given = arguments(__doc__, rounds=20)
    python = installed()
    figures = Figures(
        "beside_dbos",
        *("ids", "cancel_runs: least ms", "median ms"),
        *(f"DBOS {VERSION}: least ms", "DBOS: median ms", "least, times DBOS"),
    )
    with own_database():
        from django.db import connection

        if connection.vendor != "postgresql":
            sys.exit("DATABASE_URL must name a database of PostgreSQL.")
        with dbos_client(python) as client:
            for count in COUNTS:
                ours, theirs = [], []
                for _ in range(given.rounds):
                    theirs.append(cancel_workflows(client, count))
                    ours.append(cancel_runs(count))
                milliseconds = [
                    round(1_000 * function(each), 2)
                    for each in (ours, theirs)
                    for function in (min, statistics.median)
                ]
                figures.add(count, *milliseconds, round(min(ours) / min(theirs), 2))
        if given.save:
            figures.save()


def installed() -> Path:
    """Return the Python of the environment that has DBOS; install it if it is not there."""
    folder = ROOT / ".venv-dbos"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", f"dbos=={VERSION}"]
    subprocess.run(pip, check=True)
    return python


@contextmanager
def dbos_client(python: Path) -> Iterator[subprocess.Popen[str]]:
    """Run DBOS's side with a database of its own beside ours."""
    from django.db import connection

    from tests.api.servers import database_url

    name = f"{connection.settings_dict['NAME']}_dbos"
    url = database_url().replace("postgres://", "postgresql://", 1) + "_dbos"
    drop = f"DROP DATABASE IF EXISTS {connection.ops.quote_name(name)} WITH (FORCE)"
    with connection.cursor() as cursor:
        cursor.execute(drop)
    command = [python, ROOT / "benchmarks" / "dbos_client.py", url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    try:
        with subprocess.Popen([*command], text=True, env={}, **pipes) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            yield client
            assert client.stdin is not None
            client.stdin.close()
    finally:
        with connection.cursor() as cursor:
            cursor.execute(drop)


def cancel_workflows(client: subprocess.Popen[str], count: int) -> float:
    """Return the seconds that DBOS takes."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{count}\n")
    client.stdin.flush()
    return float(client.stdout.readline())


def cancel_runs(count: int) -> float:
    """Return the seconds that we take."""
    from django_run_cancel import cancellation
    from tests.helpers import ids, make_runs

    run_ids = ids(make_runs(count))
    begin = time.perf_counter()
    result = cancellation.cancel_runs(run_ids, requested_by="benchmark")
    seconds = time.perf_counter() - begin
    assert result.cancelled == run_ids
    return seconds


if __name__ == "__main__":
    main()
