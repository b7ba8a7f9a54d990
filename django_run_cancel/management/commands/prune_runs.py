"""``manage.py prune_runs --older-than 30d``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from django_run_cancel.management.arguments import add_age
from django_run_cancel.management.interrupts import deferred_interrupts
from django_run_cancel.management.progress import progress
from django_run_cancel.management.pruning import delete_runs, old_runs


class Command(BaseCommand):
    """Delete runs that ended long ago."""

    help = (
        "Delete runs that ended longer ago than this, in batches, children first. A run stays "
        "while it is stopping, while its executor has yet to be told or a handler to be called, "
        "and while a run below it stays. Records of cancellations stay."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        add_age(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete them."""
        old = old_runs(options["older_than"])
        if options["dry_run"]:
            self.stdout.write(
                f"Would delete up to {old.count()} runs: those above a run that stays, stay too."
            )
            return
        count = 0
        with deferred_interrupts() as signals, progress("run") as advance:
            for deleted in delete_runs(old):
                count += deleted
                advance(deleted)
                if signals:
                    break
        self.stdout.write(f"Deleted {count} runs.")
