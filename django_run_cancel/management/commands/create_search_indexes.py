"""``manage.py create_search_indexes``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections, router

from django_run_cancel.db.search_indexes import EXTENSION, SearchIndex
from django_run_cancel.models import Cancellation, get_run_model


class Command(BaseCommand):
    """Create the indexes with which the admin searches any number of rows."""

    help = "Create the indexes with which the admin searches titles and reasons (PostgreSQL only)."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--dry-run", action="store_true", help="Print the SQL, and change nothing."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Create the indexes that are missing."""
        run = get_run_model()
        using = router.db_for_write(run)
        if connections[using].vendor != "postgresql":
            raise CommandError("These indexes need PostgreSQL.")
        indexes = (
            SearchIndex.of(run, "title", "words"),
            SearchIndex.of(run, "external_id", "prefix"),
            SearchIndex.of(Cancellation, "requested_by", "words"),
            SearchIndex.of(Cancellation, "reason", "words"),
        )
        missing = [index for index in indexes if not index.exists(using)]
        if not missing:
            self.stdout.write("All search indexes exist.")
            return
        statements = [f"CREATE EXTENSION IF NOT EXISTS {EXTENSION}"]
        statements += [sql for index in missing for sql in index.statements(using)]
        for statement in statements:
            self.stdout.write(f"{statement};")
            if not options["dry_run"]:
                self._execute(statement, using)

    def _execute(self, statement: str, using: str) -> None:
        try:
            with connections[using].cursor() as cursor:
                cursor.execute(statement)
        except DatabaseError as error:
            raise CommandError(str(error).strip()) from error
