"""What runs next to the web server, and has to end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from config import settings
from django.db.models import Q, QuerySet

from django_run_cancel.backends import StopRequest, get_backend
from django_run_cancel.states import ACTIVE, StopState

STOP_SECONDS = 5
CELERY_CONCURRENCY = 4


@contextmanager
def running(*arguments: str, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python next to this process, until the block is left.

    Args:
        arguments: What comes after ``python``.
        log: Where its output goes; by default, where that of this process goes.
    """
    paths = [str(settings.BASE_DIR), os.environ.get("PYTHONPATH", "")]
    environment = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    with (
        log.open("wb") if log else nullcontext() as output,
        subprocess.Popen(  # noqa: S603 - nothing in it comes from outside
            [sys.executable, *arguments],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is for this process, which then ends the others in their order.
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # With all that it has started.
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def workers(*options: str, folder: Path | None = None) -> Iterator[None]:
    """Run what does the work: the delivery worker, and with a broker that of Celery.

    Args:
        options: Of the delivery worker.
        folder: Where their logs go; by default, where the output of this process goes.
    """
    manage = str(settings.BASE_DIR / "manage.py")
    commands = {"delivery": [manage, "deliver_cancellations", *options]}
    if settings.CELERY_BROKER_URL:
        celery = ("-m", "celery", "-A", "config.celery", "worker", "--loglevel", "WARNING")
        queue = ("-Q", settings.CELERY_TASK_DEFAULT_QUEUE)
        commands["celery"] = [*celery, *queue, "--concurrency", str(CELERY_CONCURRENCY)]
    with ExitStack() as stack:
        for name, command in commands.items():
            log = folder / f"{name}.log" if folder else None
            stack.enter_context(running(*command, log=log))
        yield


def stop_jobs(runs: QuerySet[Any], *, force: bool) -> None:
    """Stop the jobs of all runs that may still have one, whatever their status is.

    This is for a host that goes down, not for cancelling: nothing is written.

    Args:
        runs: Among these.
        force: Kill them, where that can be done.
    """
    unfinished = runs.filter(Q(status__in=ACTIVE) | Q(stop_state=StopState.STOPPING))
    requests = defaultdict(list)
    for run_id, backend, external_id in unfinished.exclude(external_id="").values_list(
        "run_id", "backend", "external_id"
    ):
        requests[backend].append(StopRequest(run_id, external_id, running=True))
    for backend, jobs in requests.items():
        get_backend(backend).stop(jobs, force=force)
