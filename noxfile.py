"""Checks of this project in environments of their own: ``nox --list`` shows them.

``.ci/run`` runs them all. PostgreSQL, MariaDB, Redis and RabbitMQ are expected at the URLs below;
each session uses a database of its own name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2026.2.9"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "types", "docs", "schema"]

POSTGRESQL_URL = os.environ.get("POSTGRESQL_URL", "postgres://root@127.0.0.1:5432/run_cancel")
MARIADB_URL = os.environ.get("MARIADB_URL", "mysql://root@127.0.0.1:3306/run_cancel")

WITHOUT_SERVERS = ("-m", "not broker and not browser")


def without(*paths: str) -> tuple[str, ...]:
    """Return the arguments with which pytest leaves out modules and folders of tests.

    Args:
        paths: Patterns of paths below ``tests/``.

    Raises:
        FileNotFoundError: A pattern matches nothing, as after a module has got another name.
    """
    for path in paths:
        if not any(Path("tests").glob(path)):
            raise FileNotFoundError(f"tests/{path}")
    return tuple(f"--ignore-glob=tests/{path}" for path in paths)


# "make test", on SQLite, runs every test that needs no broker and no browser; "lowest" runs all but
# one module of them on PostgreSQL. "mariadb" and "swapped" leave out what cannot have another
# result there.

# What is the same on each database: servers, documents, and projects of the tests' own.
ONCE = without(
    "api/test_live.py",
    "api/test_schema.py",
    "api/test_schemathesis.py",
    "backends/test_process.py",
    "backends/test_process_jobs.py",
    "docs",
    "execution/test_greenlets.py",
    "faults/test_web.py",
    "scaling",
    "test_hosts.py",
    "translations",
)
# Requests that no client sends, most of them refused for what they are, before rows are read.
REQUESTS = without(
    "api/test_fuzz.py",
    "api/test_hostile_headers.py",
    "api/test_hostile_transfers.py",
)
# Those that reach the database with odd texts; no run answers to them.
TEXTS = without(
    "api/test_hostile_bodies.py",
    "api/test_hostile_requests.py",
)
# What pages of the admin say, and to whom. The lists, searches and selections, whose statements
# each database plans for itself, stay.
PAGES = without(
    "admin/test_cancellation_page.py",
    "admin/test_confirm.py",
    "admin/test_mixins.py",
    "admin/test_permissions.py",
    "admin/test_run_page.py",
)
# How an executor outside of the database publishes and executes tasks. All of them read and write
# runs by the functions that test_statements.py and test_outages.py test.
EXECUTORS = without(
    "integrations/test_celery_*.py",
    "integrations/test_dramatiq_*.py",
    "integrations/test_huey_*.py",
    "integrations/test_rq_*.py",
)
# Servers that refuse to write, and sessions that end: the run model does not change what they do.
OUTAGES = without(
    "faults/test_connections.py",
    "faults/test_lost_sessions.py",
    "faults/test_server.py",
)
# Backends know ids of runs, and no models.
BACKENDS = without("backends")
# What a command prints and asks on a terminal, and how it takes signals.
TERMINALS = without("management/test_cancel_runs_process.py")
# Processes of the package and of executors, which are killed, or wait for each other.
PROCESSES = without(
    "cancellation/test_bulk_processes.py",
    "faults/test_frozen.py",
    "faults/test_kills.py",
    "integrations/test_*_worker.py",
    "integrations/test_huey_consumer.py",
)

# Tests that reach what one database alone executes. Where coverage is measured, tests take more
# than half as long again, so the sessions with PostgreSQL and MariaDB measure it for these only.
MEASURED = (
    *("tests/cancellation", "tests/db", "tests/delivery", "tests/execution", "tests/models"),
    *("tests/admin/test_search.py", "tests/test_checks.py"),
)
MEASURED_ON_POSTGRESQL = (
    *MEASURED,
    "tests/backends/test_django_tasks.py",
    "tests/backends/test_procrastinate.py",
    "tests/integrations/test_celery_eager.py",  # with the oldest Celery
    "tests/integrations/test_procrastinate_deferring.py",
    "tests/integrations/test_procrastinate_executing.py",
)

# Many tests wait, for workers or threads. A test class or module stays in one process.
PARALLEL = ("--numprocesses", "2", "--dist", "loadscope")

PACKAGE = "django_run_cancel"

# A published client of the API, run unmodified. Its dependencies clash with other tools.
API_CLIENT = "skyvern==1.0.56"


def install(session: nox.Session, *groups: str, django: str = "", lowest: bool = False) -> None:
    """Install this package with dependency groups: the newest versions, or the oldest allowed."""
    requirements = ["--editable", "."]
    for group in groups:
        requirements += ["--group", group]
    if django:
        requirements.append(f"django=={django}.*")
    if lowest:
        requirements += ["--resolution", "lowest-direct"]
    session.install(*requirements)
    if "test" in groups:
        session.install("--no-deps", API_CLIENT)


def pytest(
    session: nox.Session,
    *arguments: str,
    database: str = "",
    settings: str = "tests.settings",
    coverage: bool = False,
) -> None:
    """Run tests against a database named after the session; SQLite by default."""
    env = {"DJANGO_SETTINGS_MODULE": settings, "RUN_CANCEL_REQUIRE_SERVICES": "1"}
    if database:
        env["DATABASE_URL"] = f"{database}_{session.name.partition('-')[0]}"
    if coverage:
        # Combined by the session "coverage".
        env["COVERAGE_FILE"] = str(Path(".coverage").resolve()) + f".{session.name}"
        arguments = ("--cov=django_run_cancel", "--cov-branch", "--cov-report=", *arguments)
    versions = (
        "import sys, django;print('Python', sys.version.split()[0], 'Django', django.__version__)"
    )
    session.run("python", "-c", versions)
    session.run("python", "-m", "pytest", "-q", *arguments, *session.posargs, env=env)


def pytest_in_parts(
    session: nox.Session, measured: Sequence[str], *arguments: str, database: str
) -> None:
    """Run some tests with coverage, then the others without."""
    if session.posargs:  # somebody asks for tests of their own
        pytest(session, *arguments, database=database)
        return
    pytest(session, *arguments, *measured, database=database, coverage=True)
    pytest(session, *arguments, *[f"--ignore={path}" for path in measured], database=database)


@nox.session(python="3.12")
def mariadb(session: nox.Session) -> None:
    """Test on MariaDB with Django 6.0: all whose result can depend on the database."""
    install(session, "test", django="6.0")
    arguments = (*WITHOUT_SERVERS, *ONCE, *REQUESTS, *PAGES, *EXECUTORS, *TERMINALS, *PARALLEL)
    pytest_in_parts(session, MEASURED, *arguments, database=MARIADB_URL)


@nox.session(python="3.13")
def swapped(session: nox.Session) -> None:
    """Test a host with a run model of its own, on PostgreSQL with Django 6.1.

    All is tested whose result can depend on the run model.
    """
    install(session, "test", django="6.1")
    left_out = (*ONCE, *REQUESTS, *TEXTS, *OUTAGES, *BACKENDS, *TERMINALS, *PROCESSES)
    arguments = (*WITHOUT_SERVERS, *left_out, *PARALLEL)
    pytest(session, *arguments, database=POSTGRESQL_URL, settings="tests.settings_swapped")


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Test on PostgreSQL with the oldest version of each dependency that pyproject.toml allows."""
    install(session, "test", lowest=True)
    session.run("uv", "pip", "list")
    left_out = without(
        "api/test_schemathesis.py",  # hundreds of requests that "make test" sends
        "backends/brokers",  # "brokers" has them
        "test_recipes.py",  # they install the newest versions
    )
    # Of each executor, the tests of its integration start workers with one broker, which execute,
    # retry and cancel tasks, and are told by the backend to stop. Other variants are in "brokers".
    arguments = ("-m", "not browser", "-k", "not (TestTracked or RabbitMQ)", *left_out, *PARALLEL)
    pytest_in_parts(session, MEASURED_ON_POSTGRESQL, *arguments, database=POSTGRESQL_URL)


@nox.session(python="3.13")
def brokers(session: nox.Session) -> None:
    """Test the backends and integrations with Redis and RabbitMQ, on PostgreSQL."""
    install(session, "test", django="5.2")
    pytest(session, "-m", "broker", *PARALLEL, database=POSTGRESQL_URL, coverage=True)


@nox.session(python="3.13")
def browser(session: nox.Session) -> None:
    """Test the admin in Chromium, plain and with three themes."""
    install(session, "test", "browser", django="6.1")
    session.run("make", "axe", external=True)
    pytest(session, "-m", "browser", database=POSTGRESQL_URL)
    for theme in ("unfold", "grappelli", "jazzmin"):
        pytest(session, "tests/browser/test_themes.py", settings=f"tests.settings_{theme}")


@nox.session(python="3.11")
def coverage(session: nox.Session) -> None:
    """Report what the tests of all sessions have covered together; less than all is an error."""
    session.install("coverage>=7.10")
    session.run("coverage", "combine")
    session.run("coverage", "report", "--fail-under=100")


@nox.session(python="3.13")
def lint(session: nox.Session) -> None:
    """Check style and the order of imports."""
    install(session, "lint")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")


@nox.session(python="3.13")
def types(session: nox.Session) -> None:
    """Check the types of the package, and of a host with and without the Django plugin of mypy."""
    install(session, "types")
    session.run("mypy")
    for host in sorted(map(str, Path("tests/typing").glob("*.py"))):
        session.run("mypy", host)
        # Of what has been checked with the plugin, mypy's cache is of no use without it.
        session.run("mypy", "--config-file=", "--strict", "--cache-dir=/dev/null", host)
        session.run("pyright", host)


@nox.session(python="3.13")
def docs(session: nox.Session) -> None:
    """Build the documentation; warnings are errors."""
    install(session, "docs")
    session.run("sphinx-build", "-q", "-W", "-b", "html", "docs", session.create_tmp() + "/html")


@nox.session(python="3.13")
def schema(session: nox.Session) -> None:
    """Validate the OpenAPI documents of two hosts and of the example."""
    install(session, "test", django="6.1")
    folder = Path(session.create_tmp())
    hosts = {
        "default": ("tests.settings", "."),
        "swapped": ("tests.settings_swapped", "."),
        "example": ("config.settings", "example_project"),
    }
    for name, (settings, path) in hosts.items():
        command = ["-W", "error", "-m", "django", "spectacular", "--validate", "--fail-on-warn"]
        env = {"DJANGO_SETTINGS_MODULE": settings, "PYTHONPATH": path}
        session.run("python", *command, "--file", str(folder / f"{name}.yaml"), env=env)
    # The recommended rules of Spectral and Redocly, from npm.
    session.run("python", "-m", "tools.lint_openapi", str(folder / "linters"))


@nox.session(python="3.13")
def wheel(session: nox.Session) -> None:
    """Build the package, install the wheel, and cancel a run with it outside of this folder."""
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "dist", ignore_errors=True)
    session.install("build", "twine")
    session.run("python", "-m", "build", "--outdir", str(folder / "dist"), silent=True)
    packages = [str(path) for path in sorted((folder / "dist").iterdir())]
    session.run("twine", "check", "--strict", *packages)
    session.install("--reinstall", *[path for path in packages if path.endswith(".whl")])
    smoke = Path(".ci/smoke.py").resolve()
    with session.chdir(folder):
        session.run("python", str(smoke))


@nox.session(python="3.13")
def security(session: nox.Session) -> None:
    """Search the package for unsafe code; with "-- audit", dependencies for known vulnerabilities.

    The audit asks a public database, and fails where that cannot be reached.
    """
    install(session, "security")
    session.run("bandit", "--quiet", "--recursive", "--configfile", "pyproject.toml", PACKAGE)
    if session.posargs != ["audit"]:
        session.log("Dependencies were not looked at: nox -s security -- audit")
        return
    requirements = Path(session.create_tmp()) / "requirements.txt"
    frozen = session.run("uv", "pip", "freeze", "--quiet", "--exclude-editable", silent=True)
    requirements.write_text(frozen or "", "utf-8")
    # Strict: what the database does not know, or cannot be asked about, is an error.
    audit = ["--strict", "--no-deps", "--disable-pip", "--requirement", str(requirements)]
    session.run("pip-audit", *audit)


@nox.session(python="3.13")
def fuzz(session: nox.Session) -> None:
    """Try many odd requests, on PostgreSQL: 2,000 in each test, or as many as "-- 10000" says."""
    install(session, "test", django="6.1")
    env = {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": f"{POSTGRESQL_URL}_{session.name}",
        "RUN_CANCEL_FUZZ_EXAMPLES": (session.posargs or ["2000"])[0],
    }
    tests = ("tests/api/test_fuzz.py", "tests/api/test_schemathesis.py")
    session.run("python", "-m", "pytest", "-q", *PARALLEL[:2], *tests, env=env)


@nox.session(python="3.13")
def mutation(session: nox.Session) -> None:
    """Change random places of the core, and fail when the tests of their folder do not notice."""
    install(session, "test")
    session.install("cosmic-ray>=8.7")
    session.run("python", "-m", "tools.mutation", *session.posargs)
