"""``manage.py deliver_cancellations``: the delivery worker."""

from __future__ import annotations

import argparse
import logging
import time
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DatabaseError, InterfaceError, connections

from django_run_cancel.delivery.lateness import find_lateness, find_unknown_backends
from django_run_cancel.delivery.outbox import queue_size
from django_run_cancel.delivery.step import deliver_due
from django_run_cancel.management.interrupts import deferred_interrupts

logger = logging.getLogger("django_run_cancel")


class Command(BaseCommand):
    """Run the delivery worker until SIGTERM or SIGINT."""

    help = (
        "Run the delivery worker. It tells executors to stop cancelled runs, and to kill those "
        "that have not stopped after RUN_CANCEL_GRACE_SECONDS. It also calls handlers and "
        "dispatches runs again whose dispatch has failed. After SIGTERM it finishes its step and "
        "ends; after a second one it ends at once."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument("--once", action="store_true", help="Do one step, and end.")
        mode.add_argument("--burst", action="store_true", help="End when nothing is due.")
        mode.add_argument(
            "--queue-size", action="store_true", help="Print figures for monitoring, and end."
        )
        parser.add_argument(
            "--interval",
            type=_positive(float),
            default=1.0,
            metavar="SECONDS",
            help="Time between steps when nothing was due. Default: 1",
        )
        parser.add_argument(
            "--batch-size",
            type=_positive(int),
            default=100,
            metavar="N",
            help="Items and runs of each kind per step. Default: 100",
        )

    def handle(self, **options: Any) -> None:
        """Do as the options say."""
        if options["queue_size"]:
            late = find_lateness()
            figures = {
                **queue_size(),
                "late_seconds": int(late.duration.total_seconds()) if late else 0,
                "unknown_backend_pending": sum(find_unknown_backends().values()),
            }
            self.stdout.write(" ".join(f"{name}={figure}" for name, figure in figures.items()))
            return
        with deferred_interrupts() as received:
            self._work(received, options)

    def _work(self, received: list[int], options: dict[str, Any]) -> None:
        only_some = options["once"] or options["burst"]
        if options["verbosity"] and not only_some:
            self.stdout.write("The delivery worker is running. SIGTERM or Ctrl-C ends it.")
        is_away = False
        while not received:
            try:
                report = deliver_due(options["batch_size"])
            except (DatabaseError, InterfaceError):
                if only_some:
                    raise
                if not is_away:
                    logger.exception(
                        "The database is unreachable or fails. The delivery worker tries again."
                    )
                is_away = True
                # Not at each step: it would connect anew each time where CONN_MAX_AGE is 0.
                connections.close_all()
                _rest(options["interval"], received)
                continue
            if is_away:
                logger.warning("The delivery worker reaches the database again.")
            is_away = False
            if options["verbosity"] > 1 and report:
                self.stdout.write(str(report))
            if options["once"] or (options["burst"] and not report):
                return
            if not report:
                _rest(options["interval"], received)


def _rest(seconds: float, received: list[int]) -> None:
    # Not on an Event: a handler that sets it could interrupt this thread while it has its lock.
    until = time.monotonic() + seconds
    while not received and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def _positive(kind: type[float] | type[int]) -> Any:
    def parse(text: str) -> float:
        number = kind(text)
        if not 0 < number < 1e6:
            raise argparse.ArgumentTypeError("must be above 0")
        return number

    parse.__name__ = kind.__name__  # argparse names it in errors
    return parse
