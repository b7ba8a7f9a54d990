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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.db import DatabaseError
from django.db.models import QuerySet
from django.utils import timezone

from django_run_cancel.ids import is_storable
from django_run_cancel.models import get_run_model
from django_run_cancel.services import MAX_LABEL_LENGTH, CancelResult, cancel_runs, recorded_id
from django_run_cancel.states import ACTIVE, SUCCESSFUL, RunStatus, Source, Via

CHUNK_SIZE = 100
"""Runs cancelled in one transaction, as over HTTP."""

SOME_FAILED = 1
USAGE = 2


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
            "--file", type=Path, metavar="F", help="Read ids from this file, one a line."
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
        run_ids = self._read_ids(options)
        try:
            runs = self._scope(options)
            if run_ids is None:
                chosen = frozen(runs.filter(status__in=ACTIVE))
                total, chunks = chosen.count(), selected(chosen)
            else:
                total, chunks = len(run_ids), batched(run_ids)
        except DatabaseError as error:
            raise CommandError(f"The database gave up: {error}") from None
        unasked = options["yes"] or options["dry_run"] or not total
        if not (unasked or self._confirmed(total, options)):
            raise CommandError("Nothing has been cancelled.", returncode=USAGE)
        report, problem, status = Report(), "", SOME_FAILED
        with stopping(self.stderr) as signals, progress(total) as advance:
            try:
                for chunk in chunks:
                    if signals:
                        raise KeyboardInterrupt
                    report.add(self._cancel(chunk, runs, options))
                    advance(len(chunk))
            except DatabaseError as error:
                problem = f"The database gave up: {error}"
            except KeyboardInterrupt:
                problem, status = "Interrupted", 128 + (signals or [signal.SIGINT])[0]
        self._print(report, options)
        done = len(report.cancelled) + len(report.failed)
        if problem:
            left = f"{max(total - done, 0)} of {total} runs were not looked at."
            raise CommandError(f"{problem}: {left}", returncode=status)
        if report.failed:
            raise CommandError(
                f"{len(report.failed)} of {done} runs are not cancelled.", returncode=SOME_FAILED
            )

    def _scope(self, options: dict[str, Any]) -> QuerySet[Any]:
        """Return the runs that may be touched."""
        filters: dict[str, Any] = {}
        for option, lookup in (("tenant", "tenant"), ("type", "run_type")):
            if (value := options[option]) is not None:
                # Blank is more likely a variable that is not set than meant.
                if not value.strip() or not is_storable(value, MAX_LABEL_LENGTH):
                    raise CommandError(f"--{option} must not be blank.", returncode=USAGE)
                filters[lookup] = value
        if options["status"]:
            # What was cancelled before is no failure when the same is asked again.
            filters["status__in"] = [*options["status"], RunStatus.CANCELLED]
        elif not filters and self._read_nothing(options):
            raise CommandError(
                "Name runs, or say which with --tenant, --status or --type.", returncode=USAGE
            )
        return get_run_model()._base_manager.filter(**filters)

    def _read_nothing(self, options: dict[str, Any]) -> bool:
        return not options["ids"] and options["file"] is None

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
        if self._read_nothing(options):
            return None
        ids: list[str] = options["ids"]
        found = [run_id for run_id in ids if run_id != "-"]
        try:
            if "-" in ids and sys.stdin is not None:
                # Whatever the locale says of the bytes.
                stream = getattr(sys.stdin, "buffer", None)
                found += lines(stream.read() if stream else sys.stdin.read().encode())
            if options["file"] is not None:
                found += lines(options["file"].read_bytes())
        except OSError as error:
            raise CommandError(f"Cannot read the ids: {error}", returncode=USAGE) from None
        return list(dict.fromkeys(found))

    def _confirmed(self, total: int, options: dict[str, Any]) -> bool:
        if "-" in options["ids"] or sys.stdin is None or not sys.stdin.isatty():
            raise CommandError("Nobody is there to be asked: add --yes.", returncode=USAGE)
        # Not input(): its prompt would go where the JSON goes.
        self.stderr.write(f"Cancel {total} runs and everything below them? [y/N] ", ending="")
        self.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def _print(self, report: Report, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({**report.as_dict(), "dry_run": options["dry_run"]}))
            return
        for run_id, outcome in report.failed.items():
            self.stdout.write(f"{recorded_id(run_id)}: {outcome}")
        would_be = "would be" if options["dry_run"] else "are"
        below = f", and {len(report.below)} below them" if report.below else ""
        self.stdout.write(f"{len(report.cancelled)} runs {would_be} cancelled{below}.")


@dataclass
class Report:
    """What has come of it so far.

    Attributes:
        cancelled: Ids that are cancelled now.
        failed: Outcomes of the others, by id.
        cancellations: Ids of the records, one for each transaction.
    """

    cancelled: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cancellations: list[str] = field(default_factory=list)
    _cascade: set[str] = field(default_factory=set)

    @property
    def below(self) -> set[str]:
        """Descendants that went along, without those that were named as well."""
        return self._cascade.difference(self.cancelled)

    def add(self, result: CancelResult) -> None:
        """Add the result of a transaction."""
        self.cancelled += result.cancelled
        for item in result.items:
            if item.via == Via.CASCADE:
                self._cascade.add(item.run_id)
            elif item.outcome not in SUCCESSFUL:
                self.failed[item.run_id] = item.outcome.value
        if result.cancellation is not None:
            self.cancellations.append(result.cancellation.cancellation_id)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values; ``below`` is a number."""
        return {
            "cancelled": self.cancelled,
            "failed": self.failed,
            "below": len(self.below),
            "cancellations": self.cancellations,
        }


def lines(data: bytes) -> list[str]:
    """Return the ids in a file, one a line, whatever editor has written it."""
    text = data.decode("utf-8-sig", errors="replace")
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def batched(run_ids: list[str]) -> Iterator[list[str]]:
    """Yield the ids in chunks."""
    for start in range(0, len(run_ids), CHUNK_SIZE):
        yield run_ids[start : start + CHUNK_SIZE]


def frozen(runs: QuerySet[Any]) -> QuerySet[Any]:
    """Return these runs without those that are created from now on, which were not meant."""
    return runs.filter(created_at__lte=timezone.now())


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
    if caller := os.environ.get("SUDO_USER"):
        user = f"{caller} as {user}"
    return f"{user}@{socket.gethostname()}"[:MAX_LABEL_LENGTH]


@contextmanager
def stopping(stderr: OutputWrapper) -> Iterator[list[int]]:
    """Yield a list that is empty until SIGINT or SIGTERM arrives; the second acts as always."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        restore()
        stderr.write("Stopping after this transaction; once more to stop at once.")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # Only the main thread may; elsewhere nobody presses Ctrl-C. What the caller has had ignored,
    # as a shell does for a job in the background, stays ignored.
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


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
