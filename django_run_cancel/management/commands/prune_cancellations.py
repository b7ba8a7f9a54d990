"""``manage.py prune_cancellations --older-than 90d``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from django_run_cancel.management.arguments import duration
from django_run_cancel.models import Cancellation, CancellationItem
from django_run_cancel.states import Delivery

BATCH_SIZE = 100
"""Cancellations deleted in one transaction; each may have a thousand items."""


class Command(BaseCommand):
    """Delete old records. The runs stay cancelled."""

    help = (
        "Delete records of cancellations that are older than this, in portions, with their "
        "idempotency keys. The runs stay cancelled. A record stays while an executor has yet to "
        "be told of one of its runs, or a handler to be called."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--older-than",
            type=duration,
            required=True,
            metavar="DURATION",
            help="Age, in days or hours, such as 90d or 12h.",
        )
        parser.add_argument("--dry-run", action="store_true", help="Only count them.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete them."""
        undone = [Delivery.PENDING, Delivery.FAILED]
        needed = CancellationItem.objects.filter(
            Q(delivery__in=undone) | Q(handling__in=undone), cancellation=OuterRef("pk")
        )
        old = Cancellation.objects.filter(
            ~Exists(needed), requested_at__lt=timezone.now() - options["older_than"]
        ).order_by("requested_at", "pk")
        if options["dry_run"]:
            self.stdout.write(f"Would delete {old.count()} cancellations.")
            return
        count = 0
        while pks := list(old.values_list("pk", flat=True)[:BATCH_SIZE]):
            Cancellation.objects.filter(pk__in=pks).delete()
            count += len(pks)
        self.stdout.write(f"Deleted {count} cancellations.")
