"""``manage.py prune_runs --older-than 30d``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from django_run_cancel.management.arguments import add_age
from django_run_cancel.management.interrupts import deferred_interrupts
from django_run_cancel.management.progress import in_words, progress
from django_run_cancel.management.pruning import delete_runs, old_runs


class Command(BaseCommand):
    """Delete runs that ended long ago."""

    help = (
        "Delete runs that ended longer ago than --older-than, in batches, children first. A run is "
        "kept while it is stopping, while its executor must still be told or a handler must still "
        "be called, and while a run below it is kept. Records of cancellations are kept."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        add_age(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete them."""
        old = old_runs(options["older_than"])
        if options["dry_run"]:
            self.stdout.write(
                f"Would delete up to {in_words(old.count(), 'run', 'runs')}. "
                "A run above one that is kept is kept, too."
            )
            return
        count = 0
        with deferred_interrupts() as signals, progress("run") as advance:
            for deleted in delete_runs(old):
                count += deleted
                advance(deleted)
                if signals:
                    break
        self.stdout.write(f"Deleted {in_words(count, 'run', 'runs')}.")
