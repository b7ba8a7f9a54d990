"""Check that the server of a database URL answers; let MariaDB commit without waiting for the disk.

No test needs what was committed to survive a power failure. On PostgreSQL the settings of the tests
say so for their own sessions; MariaDB knows it for the whole server alone.
"""

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
    """Connect, say what answered, and set up MariaDB."""
    settings = environ.Env.db_url_config(url)
    try:
        with connect(settings).cursor() as cursor:
            cursor.execute("SELECT version()")
            print(*cursor.fetchone())
            if "mysql" in settings["ENGINE"]:
                cursor.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    except Exception as error:  # noqa: BLE001 - whatever it is, the tests cannot run
        sys.exit(f"{url} does not answer, and the tests need it: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
