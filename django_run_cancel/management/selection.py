"""The runs that ``cancel_runs`` is about: ids from arguments, files and pipes, and filters."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from django.core.management.base import CommandError
from django.db import router
from django.db.models import QuerySet

from django_run_cancel.cancellation.arguments import (
    MAX_LABEL_LENGTH,
    MAX_RUN_ID_LENGTH,
    MAX_RUN_IDS,
)
from django_run_cancel.cancellation.filters import filter_runs
from django_run_cancel.db.clock import database_now
from django_run_cancel.db.statements import chunks
from django_run_cancel.management.arguments import (
    ACTIVE_STATUSES,
    USAGE,
    active_status,
    age_or_time,
    key_and_value,
)
from django_run_cancel.models import get_run_model
from django_run_cancel.models.ids import is_storable
from django_run_cancel.states import RunStatus

TEXTS = {
    "tenant": "Only runs of this tenant.",
    "type": "Only runs of this type.",
    "parent": "Only runs directly below the run with this id.",
    "ancestor": "Only runs below the run with this id, at any depth.",
    "backend": "Only runs of this backend.",
    "title": "Only runs with exactly this title.",
}
"""Filters by text, and what each says of itself."""

TIMES = {
    "created_before": "Only runs created longer ago than this age, or before this time.",
    "created_after": "Only runs created since.",
    "started_before": "Only runs started longer ago than this age, or before this time.",
    "started_after": "Only runs started since.",
}
"""Filters by time: an age, such as 2h, or a time."""


class Selection(NamedTuple):
    """The runs that are meant.

    Attributes:
        runs: Those that match the filters, or all.
        run_ids: The ids, without repetitions; None when the arguments name no source of ids.
        filters: The filters by name, without those that were not given.
    """

    runs: QuerySet[Any]
    run_ids: list[str] | None
    filters: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return what was asked for as the record holds it."""
        values = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in self.filters.items()
        }
        return {"filter": values} if values else {}

    def tenant(self) -> str | None:
        """Return whose runs are meant: the tenant of the filter, or the only one of those named."""
        if "tenant" in self.filters or self.run_ids is None:
            return self.filters.get("tenant")
        tenants: set[str] = set()
        for part in chunks(self.run_ids, MAX_RUN_IDS):
            possible = [run_id for run_id in part if is_storable(run_id, MAX_RUN_ID_LENGTH)]
            named = self.runs.filter(run_id__in=possible)
            tenants.update(named.order_by().values_list("tenant", flat=True).distinct()[:2])
        return tenants.pop() if len(tenants) == 1 else None


def add_selection(parser: ArgumentParser) -> None:
    """Declare the arguments that say which runs are meant."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="Run ids; - reads standard input.")
    parser.add_argument(
        "--file", type=Path, metavar="F", help="Read ids from this file, one a line."
    )
    parser.add_argument(
        "--status",
        action="append",
        type=active_status,
        metavar="{" + ",".join(ACTIVE_STATUSES) + "}",
        help="Only runs that have this status now. May be repeated.",
    )
    for name, text in TEXTS.items():
        parser.add_argument(f"--{name}", help=text)
    for name, text in TIMES.items():
        parser.add_argument(_option(name), type=age_or_time, metavar="AGE|TIME", help=text)
    parser.add_argument(
        "--metadata",
        action="append",
        type=key_and_value,
        metavar="KEY=VALUE",
        help="Only runs whose metadata has this value at this key. May be repeated.",
    )


def read_selection(options: dict[str, Any]) -> Selection:
    """Return the runs that the options of a command mean.

    Raises:
        CommandError: They mean none, or make no sense.
        DatabaseError: The database gives up.
    """
    run_ids = _read_ids(options)
    filters = _read_filters(options)
    if not filters:
        if run_ids is None:
            raise CommandError(
                "Give run ids, or select runs with --status, --tenant, --type or another filter.",
                returncode=USAGE,
            )
        return Selection(_all_runs(), run_ids, filters)
    matching = dict(filters)
    if run_ids is not None and "status" in filters:
        # A run that was cancelled before is no failure when the same is asked again.
        matching["status"] = [*filters["status"], RunStatus.CANCELLED]
    return Selection(filter_runs(_all_runs(), matching), run_ids, filters)


def _all_runs() -> QuerySet[Any]:
    model = get_run_model()
    runs: QuerySet[Any] = model._base_manager.using(router.db_for_write(model))
    return runs


def _read_filters(options: dict[str, Any]) -> dict[str, Any]:
    filters: dict[str, Any] = {}
    if options["status"]:
        filters["status"] = options["status"]
    for name in TEXTS:
        if (text := options[name]) is not None:
            filters[name] = _checked_text(name, text)
    for name in TIMES:
        if (moment := options[name]) is not None:
            is_age = isinstance(moment, timedelta)
            filters[name] = database_now(_all_runs().db) - moment if is_age else moment
    for key, value in options["metadata"] or ():
        values = filters.setdefault("metadata", {})
        if key in values:
            raise CommandError(f"--metadata names {key!r} more than once.", returncode=USAGE)
        values[key] = value
    for name in ("parent", "ancestor"):
        if name in filters and not _all_runs().filter(run_id=filters[name]).exists():
            raise CommandError(
                f"--{name}: there is no run with the id {filters[name]!r}.", returncode=USAGE
            )
    return filters


def _checked_text(name: str, text: str) -> str:
    # Blank is more likely a variable that is not set than meant.
    if not text.strip() or not is_storable(text, MAX_LABEL_LENGTH):
        raise CommandError(
            f"--{name} must be text of 1 to {MAX_LABEL_LENGTH} characters, not blank and "
            "without NUL.",
            returncode=USAGE,
        )
    return text


def _read_ids(options: dict[str, Any]) -> list[str] | None:
    ids: list[str] = options["ids"]
    if not ids and options["file"] is None:
        return None
    found = [run_id for run_id in ids if run_id != "-"]
    try:
        if "-" in ids and sys.stdin is not None:
            # Whatever the locale says of the bytes.
            stream = getattr(sys.stdin, "buffer", None)
            found += _lines(stream.read() if stream else sys.stdin.read().encode())
        if options["file"] is not None:
            found += _lines(options["file"].read_bytes())
    except OSError as error:
        raise CommandError(f"Cannot read the ids: {error}", returncode=USAGE) from None
    return list(dict.fromkeys(found))


def _lines(data: bytes) -> Iterator[str]:
    """Yield the ids in a file, one a line, whatever editor has written it."""
    text = data.decode("utf-8-sig", errors="replace")
    return (stripped for line in text.split("\n") if (stripped := line.strip()))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
