"""``manage.py retry_deliveries [--backend ALIAS] [--cancellation ID]``."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q, QuerySet

from django_run_cancel.cancellation.bulk import retry_bulk_cancellation
from django_run_cancel.conf import settings
from django_run_cancel.delivery.outbox import retry_deliveries
from django_run_cancel.management.arguments import USAGE
from django_run_cancel.management.progress import in_words
from django_run_cancel.models import Cancellation, CancellationChunk, CancellationItem
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import CancellationState, ChunkState, Delivery

MAX_CHOICES = 10
"""Cancellations that an error names."""


class Command(BaseCommand):
    """Retry failed deliveries to executors and handlers, and runs that could not be written."""

    help = (
        "Let the delivery worker try again to tell executors, and to call handlers, where all "
        "attempts have failed; without --backend also to cancel runs of bulk cancellations that "
        "the database refused to change."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--backend", metavar="ALIAS", help="Retry only deliveries to this backend."
        )
        parser.add_argument("--cancellation", metavar="ID", help="Retry only this cancellation.")

    def handle(self, **options: Any) -> None:
        """Do it, and say how many there were.

        Raises:
            CommandError: There is no such backend, or no such cancellation.
        """
        items = CancellationItem.objects.all()
        bulk = Cancellation.objects.filter(pk__in=_failed_chunks().values("cancellation"))
        if (cancellation_id := options["cancellation"]) is not None:
            if not _exists(cancellation_id):
                _check_choice("cancellation", cancellation_id, _failed_cancellations())
            items = items.filter(cancellation__cancellation_id=cancellation_id)
            bulk = bulk.filter(cancellation_id=cancellation_id)
        if (alias := options["backend"]) is not None:
            _check_choice("backend", alias, _aliases())
            items = items.filter(backend=alias)
            bulk = bulk.none()
        count = retry_deliveries(items)
        # A failed chunk is one run.
        runs = sum(retry_bulk_cancellation(record) for record in bulk)
        if count:
            self.stdout.write(
                f"The delivery worker will retry {in_words(count, 'delivery', 'deliveries')}."
            )
        elif not runs:
            self.stdout.write("No failed deliveries to retry.")
        if runs:
            self.stdout.write(
                f"The delivery worker will try to cancel {in_words(runs, 'run', 'runs')}."
            )


def _check_choice(kind: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        known = ", ".join(choices) or "none"
        raise CommandError(f"There is no {kind} {value!r}. Choose from: {known}.", returncode=USAGE)


def _aliases() -> list[str]:
    """Return the configured backends, and others that are recorded with what has failed."""
    return sorted({*settings.BACKENDS, *_failed().values_list("backend", flat=True).distinct()})


def _exists(cancellation_id: str) -> bool:
    found = Cancellation.objects.filter(cancellation_id=cancellation_id)
    return is_storable(cancellation_id, 64) and found.exists()


def _failed_cancellations() -> list[str]:
    """Return the ids of the newest cancellations of which something has failed."""
    newest = Cancellation.objects.filter(
        Q(pk__in=_failed().values("cancellation"))
        | Q(pk__in=_failed_chunks().values("cancellation"))
    )
    ids = newest.order_by("-requested_at").values_list("cancellation_id", flat=True)
    return list(ids[:MAX_CHOICES])


def _failed() -> QuerySet[CancellationItem]:
    return CancellationItem.objects.filter(
        Q(delivery=Delivery.FAILED) | Q(handling=Delivery.FAILED)
    )


def _failed_chunks() -> QuerySet[CancellationChunk]:
    """Return those that are worth another try: of an aborted cancellation nobody wants it."""
    failed = CancellationChunk.objects.filter(state=ChunkState.FAILED)
    return failed.exclude(cancellation__state=CancellationState.ABORTED)
