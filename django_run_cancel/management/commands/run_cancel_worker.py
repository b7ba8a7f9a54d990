"""The delivery worker."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
import time
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DatabaseError, InterfaceError, connections

from django_run_cancel.delivery import deliver_due
from django_run_cancel.outbox import queue_size

logger = logging.getLogger("django_run_cancel")


class Command(BaseCommand):
    """Tell executors of cancelled runs, until it is told to end."""

    help = (
        "Tells executors to stop cancelled runs, escalates, calls handlers, and dispatches again. "
        "SIGTERM ends it after the step it is at, a second one at once."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument("--once", action="store_true", help="Do one step.")
        mode.add_argument("--burst", action="store_true", help="End when nothing is due.")
        mode.add_argument(
            "--queue-size", action="store_true", help="Print figures for monitoring and end."
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
            self.stdout.write(" ".join(f"{name}={size}" for name, size in queue_size().items()))
            return
        ended: list[int] = []
        before = {}
        if threading.current_thread() is threading.main_thread():  # no other gets signals
            before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

        def end(signum: int, frame: object) -> None:
            ended.append(signum)
            for each, handler in before.items():
                signal.signal(each, handler)  # the second one is not for us

        for each in before:
            signal.signal(each, end)
        try:
            self._work(ended, options)
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _work(self, ended: list[int], options: dict[str, Any]) -> None:
        only_some = options["once"] or options["burst"]
        if options["verbosity"] and not only_some:
            self.stdout.write("The delivery worker is running. SIGTERM or Ctrl-C ends it.")
        away = False
        while not ended:
            try:
                report = deliver_due(options["batch_size"])
            except (DatabaseError, InterfaceError):
                if only_some:
                    raise
                if not away:
                    logger.exception("The delivery worker goes on after an error of the database.")
                away = True
                # Not at each step: it would connect anew each time where CONN_MAX_AGE is 0.
                connections.close_all()
                _rest(options["interval"], ended)
                continue
            if away:
                logger.warning("The delivery worker has the database back.")
            away = False
            if options["verbosity"] > 1 and report:
                self.stdout.write(str(report))
            if options["once"] or (options["burst"] and not report):
                return
            if not report:
                _rest(options["interval"], ended)


def _rest(seconds: float, ended: list[int]) -> None:
    # Not on an Event: a handler that sets it could interrupt this thread while it has its lock.
    until = time.monotonic() + seconds
    while not ended and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def _positive(kind: type[float] | type[int]) -> Any:
    def parse(text: str) -> float:
        number = kind(text)
        if not 0 < number < 1e6:
            raise argparse.ArgumentTypeError("must be above 0")
        return number

    parse.__name__ = kind.__name__  # argparse names it in errors
    return parse
