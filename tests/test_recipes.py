"""The recipes of the documentation are run as written.

A recipe is the section "From an empty folder to a cancelled task" of an executor's page, and the
section "Cancel a running task" of the quickstart, which begins with a project that exists. In it,

- a block of Python whose first line is ``# path/to/file.py`` is a file to write; with
  ``# path/to/file.py, at the end`` it is added to that file;
- the lines of a console block that begin with ``$ `` are commands for one shell. The lines below a
  command must be among those that it prints, in this order, each as part of a line; ``…`` stands
  for any text in a line, and ids and times may differ;
- ``<!-- background -->`` before a console block says that its commands keep running, and
  ``<!-- wait -->`` that its commands are repeated until they print what the page says.

Packages are not installed, but must be there. Redis, the port 8000 and the PostgreSQL database
``project`` are replaced by others that no other test uses; on Django 5.2, ``django.tasks`` by its
backport.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import requires, version
from pathlib import Path
from threading import Timer
from urllib.parse import urlsplit

import django
import pytest
from django.db import connection
from packaging.requirements import Requirement
from redis import Redis

from tests.services import require_package, require_service

HEADING = "From an empty folder to a cancelled task"
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "howto" / "backends"
SECTIONS = {
    path.stem: section[1]
    for path in sorted(FOLDER.glob("*.md"))
    if (section := re.search(rf"^## {HEADING}\n(.*?)(?=^## |\Z)", path.read_text(), re.S | re.M))
}

QUICKSTART = FOLDER.parent.parent / "quickstart.md"
SECTIONS["celery quickstart"] = QUICKSTART.read_text().split("\n## ")[1]

EXISTING = """
```console
$ django-admin startproject project .
$ python manage.py startapp jobs
$ touch jobs/tasks.py
```
```python
# project/__init__.py
from project.celery import app as celery_app
```
```python
# project/settings.py, at the end
INSTALLED_APPS += ["jobs"]
CELERY_BROKER_URL = "redis://localhost:6379/0"
CELERY_RESULT_BACKEND = "redis://localhost:6379/0"
```
"""
"""The project that a reader of the quickstart has, but for the file that the page shows whole."""

PACKAGES = {"django-tasks": "django_tasks_db"}
"""The package that a page is about, where it is called otherwise."""

TASKS = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"

LIMIT = 600.0
"""Seconds after which a recipe is given up; and half of them those that a condition may take."""

OTHER_EACH_TIME = (
    r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b",  # ids of tasks
    r"\b[a-z]+_[0-9a-f]{32}\b",  # ids of runs and cancellations
    r"\b\d{4}-\d\d-\d\d[T ][\d:.,]+(Z|[+-]\d\d:\d\d)?",
)


class Shell:
    """A shell with one session, and processes that it leaves in the background."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.background = folder.parent / "background.log"
        self.process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.timer = Timer(LIMIT, self.kill)
        self.timer.start()
        self.run("set -o pipefail")

    def run(self, command: str) -> tuple[str, int]:
        """Return what a command prints, and its exit status; variables stay in the shell."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        end = f"end-of-{time.monotonic_ns()}"
        self.process.stdin.write(f"{{ {command}\n}} </dev/null; printf '\\n{end} %s\\n' $?\n")
        self.process.stdin.flush()
        printed = ""
        for line in self.process.stdout:
            if line.startswith(end):
                return printed, int(line.split()[1])
            printed += line
        raise AssertionError(f"{command}\ndid not end. Printed so far:\n{printed}")

    def start(self, command: str) -> None:
        self.run(f"{command} >>{shlex.quote(str(self.background))} 2>&1 &")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.timer.cancel()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=20)  # until nobody can write to it any more
        self.kill()
        self.process.communicate()


def steps(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the comment before each block of a recipe, its language, and the block."""
    pattern = r"(?:^<!-- (\w+) -->\n+)?^```(python|console)\n(.*?)^```$"
    for comment, language, block in re.findall(pattern, text, flags=re.S | re.M):
        assert comment in {"", "background", "wait"}
        yield comment, language, block


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands of a console block, and the lines that each prints."""
    for text in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, output = re.split(r"(?<!\\)\n", text, maxsplit=1)
        yield command, output.splitlines()


def write(folder: Path, block: str) -> None:
    first, content = block.split("\n", 1)
    name = re.fullmatch(r"# ([\w/]+\.py)(, at the end)?", first)
    assert name is not None, f"{first!r} names no file"
    path = folder / name[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if name[2] else "w") as file:
        file.write(content)


def prints(lines: list[str], printed: str) -> bool:
    patterns = [r"[^\n]*".join(map(re.escape, same(line).strip().split("…"))) for line in lines]
    return re.search(r"[^\n]*\n.*".join(patterns), same(printed), flags=re.S) is not None


def same(text: str) -> str:
    """Return a text without what is another one each time."""
    for pattern in OTHER_EACH_TIME:
        text = re.sub(pattern, "ID", text)
    return text


def require_installed(command: str) -> None:
    """Check that an environment has what a command would install, with the extras."""
    for word in shlex.split(command.partition(" install ")[2]):
        if word.startswith("-"):
            continue
        requirement = Requirement(word)
        assert requirement.specifier.contains(version(requirement.name), prereleases=True)
        for extra in requirement.extras:
            needed = [
                each
                for each in map(Requirement, requires(requirement.name) or ())
                if each.marker is not None
                and each.marker.evaluate({"extra": extra})
                and not each.marker.evaluate({"extra": ""})
            ]
            assert needed, f"{requirement.name} has no extra {extra}"
            for each in needed:
                assert each.specifier.contains(version(each.name), prereleases=True), each


@pytest.fixture
def redis_url() -> Iterator[str]:
    """Yield the URL of a database of Redis that holds nothing and is nobody else's."""
    url = require_service("Redis")
    with Redis.from_url(url) as claims:
        for number in range(5, 16):
            own_url, claim = urlsplit(url)._replace(path=f"/{number}").geturl(), f"recipe-{number}"
            with Redis.from_url(own_url) as found:
                if found.dbsize() or not claims.set(claim, "1", nx=True, ex=int(2 * LIMIT)):
                    continue
                yield own_url
                found.flushdb()
                claims.delete(claim)
                return
    pytest.fail("No database of Redis is free.")


@pytest.fixture
def environment() -> dict[str, str]:
    """Return the variables of a terminal in which this environment is activated."""
    variables = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "PYTHONWARNINGS"):
        variables.pop(name, None)
    if connection.vendor == "postgresql":
        for name, key in {"PGHOST": "HOST", "PGPORT": "PORT", "PGUSER": "USER"}.items():
            variables[name] = str(connection.settings_dict[key])
        variables["PGPASSWORD"] = connection.settings_dict["PASSWORD"]
    return variables


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.mark.broker
@pytest.mark.parametrize("name", SECTIONS)
def test_recipe(name: str, tmp_path: Path, redis_url: str, environment: dict[str, str]) -> None:
    require_package(PACKAGES.get(name, name.split()[0]))
    text = SECTIONS[name] if "quickstart" not in name else EXISTING + SECTIONS[name]
    if "createdb" in text and connection.vendor != "postgresql":
        pytest.skip("needs PostgreSQL")
    database, port = f"test_recipe_{os.getpid()}", free_port()
    for written, used in {
        "redis://localhost:6379/0": redis_url,
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "manage.py runserver": f"manage.py runserver {port}",
        "createdb project": f"createdb {database}",
        '"NAME": "project"': f'"NAME": "{database}"',
        "from django.tasks import": f"from {TASKS} import",
    }.items():
        text = text.replace(written, used)
    folder = tmp_path / "empty"
    folder.mkdir()
    shell = Shell(folder, environment)
    try:
        follow(text, shell, folder)
    except AssertionError as error:
        if shell.background.exists():
            error.add_note(f"In the background:\n{shell.background.read_text()}")
        raise
    finally:
        shell.close()
        if "createdb" in text:
            subprocess.run(["dropdb", "--if-exists", "--force", database], env=environment)


def follow(text: str, shell: Shell, folder: Path) -> None:
    for comment, language, block in steps(text):
        if language == "python":
            write(folder, block)
            continue
        for command, lines in commands(block):
            if command.startswith("python -m pip install "):
                require_installed(command)
            elif comment == "background":
                shell.start(command)
            else:
                deadline = time.monotonic() + (LIMIT / 2 if comment == "wait" else 0)
                printed, status = shell.run(command)
                while (status or not prints(lines, printed)) and time.monotonic() < deadline:
                    time.sleep(0.2)
                    printed, status = shell.run(command)
                assert status == 0, f"{command}\nfailed: {printed}"
                assert prints(lines, printed), f"{command}\nprinted: {printed}\nnot: {lines}"


def test_what_a_page_prints_in_part() -> None:
    printed = "Created 2026-01-02 03:04:05\nrun wr_0123456789abcdef0123456789abcdef is ready\nend\n"
    assert prints([], "")
    assert prints(["run wr_fedcba9876543210fedcba9876543210 is", "end"], printed)
    assert prints(["Created 2027-02-03 04:05:06", "run … ready"], printed)
    assert not prints(["end", "run"], printed)
    assert not prints(["run … end"], printed)
