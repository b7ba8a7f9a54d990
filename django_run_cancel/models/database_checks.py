"""System checks of the settings of the database that holds the runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router

from django_run_cancel.conf import settings
from django_run_cancel.models.cancellations import Cancellation
from django_run_cancel.models.managers import get_run_model

REPEATABLE = {"repeatable read", "serializable"}


@register()
def check_databases(**kwargs: Any) -> list[CheckMessage]:
    """Check the settings of the database that holds the runs, without connecting to it."""
    try:
        alias = router.db_for_write(get_run_model())
        connection = connections[alias]
    except (LookupError, ValueError, TypeError, AttributeError, ImproperlyConfigured):
        return []  # reported by check_run_model, or by Django
    first_message = next(_check_database(alias, connection), None)
    return [] if first_message is None else [first_message]


def _check_database(alias: str, connection: Any) -> Iterator[CheckMessage]:
    """Yield messages, the most important one first."""
    if router.db_for_write(Cancellation) != alias:
        yield Error(
            "Runs and their cancellations are routed to different databases, and cannot be "
            "written in one transaction.",
            hint=f"Let DATABASE_ROUTERS send the app django_run_cancel to {alias!r} too.",
            id="django_run_cancel.E007",
        )
    if connection.settings_dict.get("AUTOCOMMIT") is False:
        yield Error(
            "With AUTOCOMMIT = False, cancellations are not committed.",
            hint=f"Remove AUTOCOMMIT from DATABASES[{alias!r}]; use transaction.atomic().",
            id="django_run_cancel.E016",
        )
    options = connection.settings_dict.get("OPTIONS", {})
    if connection.vendor == "sqlite" and options.get("transaction_mode") != "IMMEDIATE":
        yield Warning(
            "SQLite transactions that begin DEFERRED fail with 'database is locked' when "
            "several processes write.",
            hint=f"Set DATABASES[{alias!r}]['OPTIONS']['transaction_mode'] = 'IMMEDIATE'.",
            id="django_run_cancel.W002",
        )
    if connection.vendor == "postgresql":
        yield from _check_postgresql(options)
        yield from _check_pool(options.get("pool"))


def _check_postgresql(options: dict[str, Any]) -> Iterator[CheckMessage]:
    if settings.LISTEN and not _uses_psycopg_3():
        yield Warning(
            "RUN_CANCEL_LISTEN needs psycopg 3; without it, running code only polls.",
            hint="Run: pip install 'psycopg[binary]'",
            id="django_run_cancel.W010",
        )
    level = getattr(options.get("isolation_level"), "name", "")
    if level.replace("_", " ").lower() in REPEATABLE:
        yield Warning(
            f"With the isolation level {level} of PostgreSQL, a child that is created while "
            "its parent is being cancelled can escape.",
            hint="Remove isolation_level from the OPTIONS of the database with the runs.",
            id="django_run_cancel.W003",
        )


def _check_pool(pool: Any) -> Iterator[CheckMessage]:
    if isinstance(pool, dict) and (pool.get("max_size") or pool.get("min_size")) == 1:
        yield Warning(
            "The pool has one connection. While code uses it, nobody can see that its run is "
            "cancelled.",
            hint="Set max_size of the pool to the number of threads that run tasks, plus one.",
            id="django_run_cancel.W014",
        )


def _uses_psycopg_3() -> bool:
    from django.db.backends.postgresql import psycopg_any  # needs the driver to be installed

    return bool(psycopg_any.is_psycopg3)
