"""``manage.py seed_runs --count N``."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.models import AbstractRun, Run
from django_run_cancel.states import TERMINAL, WAITING, RunStatus, RunType, Source

MAX_COUNT = 100_000
BATCH_SIZE = 1_000


def count(text: str) -> int:
    """Read how many runs to create."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 1 <= number <= MAX_COUNT:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_COUNT}")
    return number


def history(status: str) -> dict[str, Any]:
    """Return the fields of a run that has just come to this status."""
    now = timezone.now()
    names = ["created_at"]
    if status != RunStatus.CREATED:
        names.append("queued_at")
    if status not in WAITING:
        names.append("started_at")
    if status in TERMINAL:
        names.append("finished_at")
    return {"status": status, **dict.fromkeys(names, now)}


def check_fields(**fields: str) -> None:
    """Check that values fit their columns.

    Raises:
        CommandError: One does not.
    """
    try:
        Run(**fields).clean_fields()
    except ValidationError as error:
        raise CommandError(
            " ".join(
                f"{name}: {' '.join(messages)}" for name, messages in error.message_dict.items()
            )
        ) from None


class Command(BaseCommand):
    """Create runs and print their ids, one a line."""

    help = "Create runs and print their ids, one a line."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--count", type=count, required=True, help=f"How many, up to {MAX_COUNT}."
        )
        parser.add_argument(
            "--status",
            choices=RunStatus.values,
            default=RunStatus.QUEUED.value,
            help="Status of the runs; %(default)s by default.",
        )
        parser.add_argument(
            "--type",
            default=RunType.TASK.value,
            help="Type of the runs: task, workflow or any other; %(default)s by default.",
        )
        parser.add_argument(
            "--tenant", help="Whose they are; nobody's, or the parent's, if left out."
        )
        parser.add_argument(
            "--parent", metavar="RUN_ID", help="Create them as children of this run."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Create the runs, all or none."""
        status: str = options["status"]
        # Only a cancellation makes a run cancelled.
        first = RunStatus.QUEUED if status == RunStatus.CANCELLED else status
        with transaction.atomic():
            if options["parent"] is None:
                tenant = options["tenant"] or ""
                run_ids = self.create_runs(options["count"], first, options["type"], tenant)
            else:
                parent = self.get_parent(options["parent"], options["tenant"])
                run_ids = self.create_children(options["count"], first, options["type"], parent)
            if status == RunStatus.CANCELLED:
                for start in range(0, len(run_ids), MAX_RUN_IDS):
                    cancel_runs(
                        run_ids[start : start + MAX_RUN_IDS],
                        requested_by="seed_runs",
                        source=Source.COMMAND,
                    )
        self.stdout.write("\n".join(run_ids))

    def get_parent(self, run_id: str, tenant: str | None) -> AbstractRun:
        """Return the run to create children of.

        Raises:
            CommandError: There is none of this id, or it belongs to another tenant.
        """
        parent: AbstractRun | None = Run.objects.filter(run_id=run_id).first()
        if parent is None:
            raise CommandError(f"There is no run {run_id!r}.")
        if tenant not in {None, parent.tenant}:
            raise CommandError(
                f"Children belong to the tenant of their parent, {parent.tenant!r}, "
                f"not to {tenant!r}: leave --tenant out."
            )
        return parent

    def create_runs(self, count: int, status: str, run_type: str, tenant: str) -> list[str]:
        """Create runs in a few statements and return their ids."""
        check_fields(run_type=run_type, tenant=tenant)
        runs = (Run(run_type=run_type, tenant=tenant, **history(status)) for _ in range(count))
        return [run.run_id for run in Run.objects.bulk_create(runs, batch_size=BATCH_SIZE)]

    def create_children(
        self, count: int, status: str, run_type: str, parent: AbstractRun
    ) -> list[str]:
        """Create runs below another and return their ids.

        Raises:
            CommandError: That run, or one above it, is cancelled.
        """
        check_fields(run_type=run_type)
        try:
            children = [
                parent.create_child(run_type=run_type, **history(status)) for _ in range(count)
            ]
        except RunCancelled as error:
            raise CommandError(str(error)) from None
        return [child.run_id for child in children]
