"""Fail with a clear message unless the server of a database URL answers."""

from __future__ import annotations

import sys
from typing import Any

import environ


def connect(settings: dict[str, Any]) -> Any:
    """Open a connection with the driver that Django would use."""
    place = {"host": settings["HOST"], "port": int(settings["PORT"]), "user": settings["USER"]}
    if "postgresql" in settings["ENGINE"]:
        import psycopg

        return psycopg.connect(**place, password=settings["PASSWORD"], dbname="postgres")
    import pymysql

    return pymysql.connect(**place, password=settings["PASSWORD"])


def main(url: str) -> None:
    """Connect and say what answered."""
    try:
        with connect(environ.Env.db_url_config(url)).cursor() as cursor:
            cursor.execute("SELECT version()")
            print(*cursor.fetchone())
    except Exception as error:  # noqa: BLE001 - whatever it is, the tests cannot run
        sys.exit(f"{url} does not answer, and the tests need it: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
