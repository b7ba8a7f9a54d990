"""Runs the demo. The database is temporary unless ``DATABASE_URL`` names one; there, runs stay.

Celery does the work if ``CELERY_BROKER_URL`` names its broker; by default, each crawl is a process.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from urllib.parse import quote

import django
from crawler.interrupts import handle_ends, interrupt
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import DatabaseError, connection

from demo import DemoFailed

GRACE_SECONDS = 5
LAST_LINES = 20


def main() -> int:
    """Run the demo and return its exit status."""
    handle_ends(insist)
    signal.signal(signal.SIGALRM, insist)
    try:
        with ExitStack() as stack:
            try:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="run-cancel-demo-")))
                run_demo(stack, folder)
            except (CommandError, DatabaseError, DemoFailed) as error:
                show_logs(folder)
                print(f"\nFAILED: {error}", file=sys.stderr)
                return 1
            finally:
                # Nothing is to interrupt the cleaning up, which takes a few seconds at most.
                signal.setitimer(signal.ITIMER_REAL, 0)
                handle_ends(signal.SIG_IGN)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    print("\nAll of this holds. What the demo started is stopped.")
    return 0


def insist(number: int, frame: FrameType | None) -> None:
    """Stop what is being done."""
    # Once more in a moment: Python drops an exception that it raises inside a finalizer, of which
    # migrating runs many.
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    interrupt(number, frame)


def run_demo(stack: ExitStack, folder: Path) -> None:
    """Do everything that the demo shows.

    Args:
        stack: Takes what has to be undone at the end.
        folder: Where logs go, and a temporary database.

    Raises:
        DemoFailed: An expectation does not hold.
    """
    tenant = f"demo-{secrets.token_hex(4)}"
    temporary = not os.environ.get("DATABASE_URL")
    if temporary:
        os.environ["DATABASE_URL"] = f"sqlite:///{quote(str(folder / 'demo.sqlite3'))}"
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "CELERY_TASK_DEFAULT_QUEUE": tenant,
        "RUN_CANCEL_GRACE_SECONDS": str(GRACE_SECONDS),
    }
    django.setup()
    # Only now: these need the settings.
    from demo.client import Client, server
    from demo.many import cancel_many, command, seed
    from demo.report import heading, shortened
    from demo.work import start_workers, stop_crawl, stop_stubborn

    stack.callback(connection.close)
    if connection.settings_dict["NAME"] == ":memory:":
        raise DemoFailed("DATABASE_URL names a database in memory, which no server can share.")

    heading("Preparing")
    call_command("migrate", verbosity=0)
    print(f"Database  {connection.display_name}{', temporary' if temporary else ''}: migrated")
    groups = seed(tenant)
    print(f"Runs      {sum(len(group.run_ids) for group in groups) - 1}, of tenant {tenant}")
    key = command("create_api_key", "make demo", "--tenant", tenant, "--expires-in", "1h")[-1]
    stack.callback(command, "revoke_api_key", key[:11])
    print(f"Key       {shortened(key)}, revoked at the end")
    client = Client(stack.enter_context(server(folder)), key)
    print(f"Server    {client.url}")

    cancel_many(client, groups)
    site = start_workers(stack, folder, tenant)
    stop_crawl(client, site, tenant)
    stop_stubborn(client, site, tenant)


def show_logs(folder: Path) -> None:
    """Print the last that the server and the workers have written."""
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        print("", f"The end of {log.name}:", *lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
