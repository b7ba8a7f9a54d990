"""``manage.py prune_cancellations --older-than 90d``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from django_run_cancel.management.arguments import add_age
from django_run_cancel.management.interrupts import deferred_interrupts
from django_run_cancel.management.progress import in_words, progress
from django_run_cancel.management.pruning import delete_cancellations, old_cancellations


class Command(BaseCommand):
    """Delete old records. The runs stay cancelled."""

    help = (
        "Delete records of cancellations that are older than --older-than, in batches, with their "
        "idempotency keys. The runs stay cancelled. A record is kept while an executor must still "
        "be told about one of its runs, or a handler must still be called."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        add_age(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete them."""
        old = old_cancellations(options["older_than"])
        if options["dry_run"]:
            self.stdout.write(
                f"Would delete {in_words(old.count(), 'cancellation', 'cancellations')}."
            )
            return
        count = 0
        with deferred_interrupts() as signals, progress("cancellation") as advance:
            for deleted in delete_cancellations(old):
                count += deleted
                advance(deleted)
                if signals:
                    break
        self.stdout.write(f"Deleted {in_words(count, 'cancellation', 'cancellations')}.")
