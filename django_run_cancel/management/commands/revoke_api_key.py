"""``manage.py revoke_api_key PREFIX``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_run_cancel.models import ApiKey
from django_run_cancel.models.api_keys import PREFIX_LENGTH
from django_run_cancel.safe_text import printable


class Command(BaseCommand):
    """Revoke an API key."""

    help = "Revoke the API key with this prefix, at once and for good."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "prefix", help="The start of the key, as create_api_key showed it, or all of it."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Revoke the key."""
        # Whoever finds a leaked key has all of it at hand.
        prefix: str = options["prefix"][:PREFIX_LENGTH]
        keys = list(ApiKey.objects.filter(prefix=prefix, revoked_at=None)[:2])
        if not keys:
            raise CommandError(f"No working API key has the prefix {prefix!r}.")
        if len(keys) > 1:
            raise CommandError(
                f"Several keys have the prefix {prefix!r}. Revoke them in the admin."
            )
        keys[0].revoke()
        self.stdout.write(printable(f"Revoked {keys[0].label}."))
