"""``manage.py list_api_keys``."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from django_run_cancel.models import ApiKey
from django_run_cancel.safe_text import printable

COLUMNS = ("prefix", "state", "rights", "tenant", "last_used_at", "expires_at", "name")


class Command(BaseCommand):
    """List API keys: what each may do, and whether it is still in use."""

    help = "List API keys, the newest first. The keys themselves are stored nowhere."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--tenant", help="Only the keys of this tenant.")
        parser.add_argument("--json", action="store_true", help="Print a list of JSON objects.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the keys."""
        rows = ApiKey.objects.order_by("-created_at", "-pk")
        if options["tenant"] is not None:
            rows = rows.filter(tenant=options["tenant"])
        keys = [row.as_dict() for row in rows]
        if options["json"]:
            self.stdout.write(json.dumps(keys, indent=2))
            return
        table = [COLUMNS, *(self._cells(key) for key in keys)]
        widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS) - 1)]
        for row in table:
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            self.stdout.write("  ".join([*padded, row[-1]]))

    def _cells(self, key: dict[str, Any]) -> tuple[str, ...]:
        shown = {**key, "rights": "read" if key["read_only"] else "cancel"}
        cells = (printable(str(shown[name] or "-")) for name in COLUMNS)
        # Times to the minute: a table is for people.
        return tuple(
            cell[:16] if name.endswith("_at") else cell
            for name, cell in zip(COLUMNS, cells, strict=True)
        )
