"""``manage.py crawl RUN_ID``: the job that the ``process`` backend starts for each run."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from crawler.work import work_on
from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.execution import execution
from django_run_cancel.integrations.process import exit_on_sigterm


class Command(BaseCommand):
    """Work on a run until it is done or cancelled."""

    help = "Works on a run until it is done or cancelled."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("run_id", help="The public id of the run.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it."""
        exit_on_sigterm()
        try:
            with execution(options["run_id"]) as run:
                work_on(run)
        except (RunCancelled, RunInProgress) as refused:
            if options["verbosity"] > 1:
                self.stdout.write(str(refused))
