"""``manage.py cancel_runs ID… | --file F | -``."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.db.models import QuerySet

from django_run_cancel.models import get_run_model
from django_run_cancel.services import MAX_LABEL_LENGTH, CancelResult, cancel_runs
from django_run_cancel.states import ACTIVE, SUCCESSFUL, Source, Via

CHUNK_SIZE = 100
"""Runs cancelled in one transaction, as over HTTP."""

SOME_FAILED = 1
USAGE = 2
INTERRUPTED = 128 + signal.SIGINT


class Command(BaseCommand):
    """Cancel any number of runs, in chunks through the one service."""

    help = (
        "Cancel runs and everything below them: those with the ids given or, without ids, all "
        "active runs that the filters leave. Any number of them, 100 in a transaction. Exit "
        "status: 0 all are cancelled, 1 some are not, 2 wrong usage, 130 interrupted."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("ids", nargs="*", metavar="ID", help="Run ids; - reads standard input.")
        parser.add_argument(
            "--file", type=Path, metavar="F", help="Read ids from this file, separated by space."
        )
        parser.add_argument("--tenant", help="Only runs of this tenant.")
        parser.add_argument(
            "--status",
            action="append",
            choices=sorted(ACTIVE),
            help="Only runs that have this status now. May be repeated.",
        )
        parser.add_argument("--type", help="Only runs of this type.")
        parser.add_argument("--reason", default="", help="Why, for the record.")
        parser.add_argument(
            "--force", action="store_true", help="Let executors kill at once what has started."
        )
        parser.add_argument(
            "--requested-by",
            metavar="WHO",
            help="Who asks, for the record; user and host by default.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Say what would happen, and change nothing."
        )
        parser.add_argument(
            "--json", action="store_true", help="Print an object with the outcome of each run."
        )
        parser.add_argument("--yes", action="store_true", help="Do not ask.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Cancel the runs.

        Raises:
            CommandError: Some are not cancelled, or the arguments make no sense.
        """
        filters = {
            name: value
            for name, value in (
                ("tenant", options["tenant"]),
                ("status__in", options["status"]),
                ("run_type", options["type"]),
            )
            if value is not None
        }
        run_ids = self._read_ids(options)
        if run_ids is None and not filters:
            raise CommandError(
                "Name runs, or say which with --tenant, --status or --type.", returncode=USAGE
            )
        runs = get_run_model()._base_manager.filter(**filters)
        if run_ids is None:
            chosen = frozen(runs.filter(status__in=ACTIVE))
            total, chunks = chosen.count(), selected(chosen)
        else:
            total, chunks = len(run_ids), batched(run_ids)
        if not (options["yes"] or options["dry_run"] or self._confirmed(total, options)):
            raise CommandError("Nothing has been cancelled.", returncode=USAGE)
        report = Report()
        problem = ""
        with stopping() as signals, progress(total) as advance:
            for chunk in chunks:
                if signals:
                    problem, status = "Interrupted", INTERRUPTED
                    break
                try:
                    result = self._cancel(chunk, runs, options)
                except DatabaseError as error:
                    problem, status = f"The database gave up: {error}", SOME_FAILED
                    break
                report.add(result)
                advance(len(chunk))
        self._print(report, options)
        done = len(report.cancelled) + len(report.failed)
        if problem:
            left = f"{max(total - done, 1)} of {total} runs were not looked at."
            raise CommandError(f"{problem}: {left}", returncode=status)
        if report.failed:
            raise CommandError(
                f"{len(report.failed)} of {done} runs are not cancelled.", returncode=SOME_FAILED
            )

    def _cancel(
        self, run_ids: list[str], runs: QuerySet[Any], options: dict[str, Any]
    ) -> CancelResult:
        try:
            return cancel_runs(
                run_ids,
                runs=runs,
                requested_by=who() if options["requested_by"] is None else options["requested_by"],
                source=Source.COMMAND,
                reason=options["reason"],
                force=options["force"],
                dry_run=options["dry_run"],
            )
        except ValueError as error:
            raise CommandError(str(error), returncode=USAGE) from None

    def _read_ids(self, options: dict[str, Any]) -> list[str] | None:
        """Return the ids without repetitions, or None when the arguments name no source of ids."""
        ids: list[str] = options["ids"]
        if not ids and options["file"] is None:
            return None
        found = [run_id for run_id in ids if run_id != "-"]
        if "-" in ids:
            found += sys.stdin.read().split()
        if options["file"] is not None:
            try:
                found += options["file"].read_text("utf-8", errors="replace").split()
            except OSError as error:
                raise CommandError(f"Cannot read the ids: {error}", returncode=USAGE) from None
        return list(dict.fromkeys(found))

    def _confirmed(self, total: int, options: dict[str, Any]) -> bool:
        if "-" in options["ids"] or not sys.stdin.isatty():
            raise CommandError("Nobody is there to be asked: add --yes.", returncode=USAGE)
        answer = input(f"Cancel {total} runs and everything below them? [y/N] ")
        return answer.strip().lower() in {"y", "yes"}

    def _print(self, report: Report, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({**asdict(report), "dry_run": options["dry_run"]}))
            return
        for run_id, outcome in report.failed.items():
            self.stdout.write(f"{run_id}: {outcome}")
        would_be = "would be" if options["dry_run"] else "are"
        below = f", and {report.below} below them" if report.below else ""
        self.stdout.write(f"{len(report.cancelled)} runs {would_be} cancelled{below}.")


@dataclass
class Report:
    """What has come of it so far.

    Attributes:
        cancelled: Ids that are cancelled now.
        failed: Outcomes of the others, by id.
        below: How many descendants were cancelled with them.
        cancellations: Ids of the records, one for each transaction.
    """

    cancelled: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    below: int = 0
    cancellations: list[str] = field(default_factory=list)

    def add(self, result: CancelResult) -> None:
        """Add the result of a transaction."""
        self.cancelled += result.cancelled
        for item in result.items:
            if item.via == Via.CASCADE:
                self.below += 1
            elif item.outcome not in SUCCESSFUL:
                self.failed[item.run_id] = item.outcome.value
        if result.cancellation is not None:
            self.cancellations.append(result.cancellation.cancellation_id)


def batched(run_ids: list[str]) -> Iterator[list[str]]:
    """Yield the ids in chunks."""
    for start in range(0, len(run_ids), CHUNK_SIZE):
        yield run_ids[start : start + CHUNK_SIZE]


def frozen(runs: QuerySet[Any]) -> QuerySet[Any]:
    """Return these runs without those that are created from now on, which were not meant."""
    last = runs.order_by("-pk").values_list("pk", flat=True).first()
    return runs.none() if last is None else runs.filter(pk__lte=last)


def selected(runs: QuerySet[Any]) -> Iterator[list[str]]:
    """Yield the ids of runs in chunks, in the order of their keys."""
    rest = runs.order_by("pk")
    chunk = list(rest.values_list("pk", "run_id")[:CHUNK_SIZE])
    while chunk:
        yield [run_id for _, run_id in chunk]
        chunk = list(rest.filter(pk__gt=chunk[-1][0]).values_list("pk", "run_id")[:CHUNK_SIZE])


def who() -> str:
    """Return the user and the host, as far as the system knows them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:MAX_LABEL_LENGTH]


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Yield a list that is empty until SIGINT arrives; the second SIGINT interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may; elsewhere nobody presses Ctrl-C.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, note)
        try:
            yield received
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        yield received


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], object]]:
    """Yield what takes the number of runs done; a bar shows it on a terminal, if there is tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield int
        return
    with tqdm(total=total, unit="run", disable=None, leave=False) as bar:
        yield bar.update
