"""``manage.py create_api_key NAME``."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from django_run_cancel.management.arguments import duration
from django_run_cancel.models import ApiKey
from django_run_cancel.safe_text import printable


class Command(BaseCommand):
    """Create an API key and print it, once, as the last line."""

    help = "Create an API key. The key is the last line of the output and is not shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("name", help="What people know the key by.")
        parser.add_argument(
            "--tenant",
            default="",
            help="Tenant whose runs the key reaches; by default, runs without a tenant.",
        )
        parser.add_argument(
            "--read-only", action="store_true", help="The key may read, and not cancel."
        )
        parser.add_argument(
            "--expires-in",
            type=duration,
            metavar="DURATION",
            help="How long the key works, such as 90d or 12h. By default it never expires.",
        )
        parser.add_argument(
            "--json", action="store_true", help="Print a JSON object, with the key as key."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Create the key."""
        expires_in: timedelta | None = options["expires_in"]
        try:
            row, key = ApiKey.issue(
                options["name"],
                tenant=options["tenant"],
                read_only=options["read_only"],
                expires_at=timezone.now() + expires_in if expires_in else None,
            )
        except ValidationError as error:
            raise CommandError(
                " ".join(
                    f"{field}: {' '.join(messages)}"
                    for field, messages in error.message_dict.items()
                )
            ) from None
        if options["json"]:
            self.stdout.write(json.dumps({**row.as_dict(), "key": key}))
            return
        scope = f"runs of tenant {row.tenant}" if row.tenant else "runs without a tenant"
        rights = "Read-only." if row.read_only else "May cancel."
        expires = (
            f"Expires {row.expires_at:%Y-%m-%d %H:%M} UTC." if row.expires_at else "Never expires."
        )
        self.stderr.write(printable(f"Created {row.label}. Scope: {scope}. {rights} {expires}"))
        self.stdout.write(key)
