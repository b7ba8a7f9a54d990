"""Trying again what has failed for good."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from django_run_cancel.models import CancellationItem
from django_run_cancel.outbox import retry_deliveries


class Command(BaseCommand):
    """Make failed deliveries and handlings due again."""

    help = "Makes failed deliveries, and handlers that failed, due again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--backend", metavar="ALIAS", help="Only of this backend.")
        parser.add_argument("--cancellation", metavar="ID", help="Only of this cancellation.")

    def handle(self, **options: Any) -> None:
        """Do it, and say how many there were."""
        items = CancellationItem.objects.all()
        if options["backend"] is not None:
            items = items.filter(backend=options["backend"])
        if options["cancellation"] is not None:
            items = items.filter(cancellation__cancellation_id=options["cancellation"])
        self.stdout.write(f"{retry_deliveries(items)} due again.")
