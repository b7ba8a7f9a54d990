"""``manage.py cancel_runs ID… | --file F | - | filters``."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from django_run_cancel.cancellation.arguments import MAX_LABEL_LENGTH, MAX_RUN_IDS, record_fields
from django_run_cancel.cancellation.bulk import (
    Preview,
    abort_bulk_cancellation,
    preview_bulk_cancellation,
    start_bulk_cancellation,
)
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.cancellation.progress import progress_of
from django_run_cancel.cancellation.service import cancel_runs
from django_run_cancel.db.statements import chunks
from django_run_cancel.management.arguments import USAGE
from django_run_cancel.management.bulk import advance
from django_run_cancel.management.interrupts import deferred_interrupts
from django_run_cancel.management.progress import progress
from django_run_cancel.management.reports import (
    Report,
    report_of,
    report_of_dry_runs,
    report_of_nothing,
    report_of_preview,
    runs_in_words,
    sample_lines,
    titles_of,
)
from django_run_cancel.management.selection import Selection, add_selection, read_selection
from django_run_cancel.models import Cancellation
from django_run_cancel.states import UNSETTLED, Source

SOME_FAILED = 1


class Ending(NamedTuple):
    """Why a command ends before a cancellation does.

    Attributes:
        problem: What has happened; blank if nothing has.
        status: The exit status.
        is_question: Whether to ask if the rest is to be aborted.
    """

    problem: str = ""
    status: int = 0
    is_question: bool = False


class Command(BaseCommand):
    """Cancel any number of runs by one bulk cancellation, and advance it until it has ended."""

    help = (
        "Cancel any number of runs, and everything active below them: the runs with these ids or, "
        "without ids, all active runs matching the filters. If this command ends early, the "
        "delivery workers continue. Exit status: 0 if all runs are cancelled, 1 if some are not, "
        "2 for wrong arguments, 130 if interrupted."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        add_selection(parser)
        parser.add_argument("--reason", default="", help="Why you cancel, for the record.")
        parser.add_argument(
            "--force",
            action="store_true",
            help="Let executors kill running code at once, if they can; with ids, also runs that "
            "were cancelled before and are still stopping.",
        )
        parser.add_argument(
            "--requested-by",
            metavar="WHO",
            help="Who cancels, for the record; by default user and host.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Say what would happen, and change nothing."
        )
        parser.add_argument(
            "--no-wait",
            action="store_true",
            help="Record which runs to cancel, and let the delivery workers cancel them.",
        )
        parser.add_argument("--json", action="store_true", help="Print a JSON object.")
        parser.add_argument("--yes", action="store_true", help="Do not ask before cancelling.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Cancel the runs.

        Raises:
            CommandError: Some are not cancelled, or the arguments make no sense.
        """
        if options["requested_by"] is None:
            options["requested_by"] = who()
        _check_record(options)
        try:
            selection = read_selection(options)
            if options["dry_run"]:
                report = _dry_run(selection, options)
            elif (preview := _preview(selection, options)).count:
                if not (options["yes"] or self._confirmed(preview, options)):
                    raise CommandError("Nothing has been cancelled.", returncode=USAGE)
                report = None
            else:
                report = report_of_nothing(selection.run_ids)
        except Error as error:
            raise CommandError(f"The database failed: {error}") from None
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
            raise CommandError("Nothing has been cancelled.", returncode=status) from None
        if report is None:
            self._cancel(selection, options)
        else:
            self._finish(report, options)

    def _confirmed(self, preview: Preview, options: dict[str, Any]) -> bool:
        if not _is_on_terminal(options):
            raise CommandError("No terminal to confirm on; add --yes.", returncode=USAGE)
        for line in sample_lines(titles_of(preview), preview.count):
            self.stderr.write(line)
        count = runs_in_words(preview.count, is_capped=preview.is_capped)
        below = "it" if preview.count == 1 else "them"
        return self._ask(f"Cancel {count} and everything below {below}?")

    def _ask(self, question: str) -> bool:
        # Not input(): its prompt would go where the JSON goes.
        self.stderr.write(f"{question} [y/N] ", ending="")
        self.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def _cancel(self, selection: Selection, options: dict[str, Any]) -> None:
        record, ending = self._advance(selection, options)
        if record is None:
            raise CommandError(
                f"{ending.problem}: nothing has been cancelled.", returncode=ending.status
            )
        if ending.is_question and _is_on_terminal(options):
            try:
                self._offer_to_abort(record)
            except Error as error:
                ending = Ending(f"The database failed: {error}", ending.status)
        report = _report(record, selection)
        is_left_to_workers = options["no_wait"] and not ending.problem
        self._finish(report, options, ending, is_left_to_workers=is_left_to_workers)

    def _advance(
        self, selection: Selection, options: dict[str, Any]
    ) -> tuple[Cancellation | None, Ending]:
        """Record what is to be cancelled, and cancel it unless workers are to."""
        record: Cancellation | None = None
        with deferred_interrupts(self._say_stopping) as signals:
            try:
                record = _start(selection, options)
                if not options["no_wait"]:
                    with progress("run", record.total_count) as add:
                        for more in advance(record, signals):
                            add(more)
            except Error as error:
                return record, Ending(f"The database failed: {error}", SOME_FAILED)
            except KeyboardInterrupt:  # the second one
                return record, Ending("Interrupted", 128 + (signals or [signal.SIGINT])[0])
        if signals and record.state in UNSETTLED:
            is_question = signals == [signal.SIGINT]
            return record, Ending("Interrupted", 128 + signals[0], is_question=is_question)
        return record, Ending()

    def _say_stopping(self) -> None:
        self.stderr.write("Stopping after this transaction. Interrupt again to stop at once.")

    def _offer_to_abort(self, record: Cancellation) -> None:
        left = record.total_count - progress_of([record])[record.pk].processed_count
        if not left:
            return  # only what is below the runs
        rest = runs_in_words(left)
        question = f"Abort the rest, {rest}? Otherwise the delivery workers cancel it."
        with suppress(KeyboardInterrupt):
            if self._ask(question):
                abort_bulk_cancellation(record)

    def _finish(
        self,
        report: Report,
        options: dict[str, Any],
        ending: Ending = Ending(),  # noqa: B008 - immutable
        *,
        is_left_to_workers: bool = False,
    ) -> None:
        """Say what was done, and whether that is what was asked for."""
        if options["json"]:
            self.stdout.write(json.dumps({**report.as_dict(), "dry_run": options["dry_run"]}))
        else:
            for line in report.lines(
                is_dry_run=options["dry_run"], is_left_to_workers=is_left_to_workers
            ):
                self.stdout.write(line)
        if ending.problem:
            raise CommandError(
                f"{ending.problem}: {report.what_is_left()}", returncode=ending.status
            )
        if report.is_aborted:
            raise CommandError(f"Aborted: {report.what_is_left()}", returncode=SOME_FAILED)
        if failed := report.what_has_failed():
            raise CommandError(failed, returncode=SOME_FAILED)


def _check_record(options: dict[str, Any]) -> None:
    """Refuse what the record cannot hold before anything is asked."""
    try:
        record_fields(
            [],
            requested_by=options["requested_by"],
            tenant=None,
            source=Source.COMMAND,
            origin=Origin(),
            reason=options["reason"],
            force=options["force"],
            idempotency_key=None,
        )
    except ValueError as error:
        raise CommandError(str(error), returncode=USAGE) from None


def _dry_run(selection: Selection, options: dict[str, Any]) -> Report:
    if selection.run_ids is None:
        return report_of_preview(_preview(selection, options))
    return report_of_dry_runs(
        cancel_runs(
            part,
            runs=selection.runs,
            requested_by=options["requested_by"],
            force=options["force"],
            dry_run=True,
        )
        for part in chunks(selection.run_ids, MAX_RUN_IDS)
    )


def _preview(selection: Selection, options: dict[str, Any]) -> Preview:
    return preview_bulk_cancellation(
        selection.runs,
        run_ids=selection.run_ids,
        requested_by=options["requested_by"],
        force=options["force"],
    )


def _start(selection: Selection, options: dict[str, Any]) -> Cancellation:
    started = start_bulk_cancellation(
        selection.runs,
        run_ids=selection.run_ids,
        selection=selection.as_json(),
        requested_by=options["requested_by"],
        tenant=selection.tenant(),
        source=Source.COMMAND,
        reason=options["reason"],
        force=options["force"],
    )
    return started.cancellation


def _report(record: Cancellation, selection: Selection) -> Report:
    try:
        return report_of(record, selection.run_ids)
    except Error:  # it is away; what was recorded is there all the same
        return Report(record.total_count, record=record)


def _is_on_terminal(options: dict[str, Any]) -> bool:
    return "-" not in options["ids"] and sys.stdin is not None and sys.stdin.isatty()


def who() -> str:
    """Return the user and the host, as far as the system knows them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = f"uid {os.getuid()}"
    if caller := os.environ.get("SUDO_USER"):
        user = f"{caller} as {user}"
    return f"{user}@{socket.gethostname()}"[:MAX_LABEL_LENGTH]
