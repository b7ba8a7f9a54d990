"""What the tests of faults share: how long they take, crashes in this process, and empty tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, transaction
from django.utils import timezone

from django_run_cancel.cancellation import advance_bulk_cancellations
from django_run_cancel.cancellation.chunks import Pace
from django_run_cancel.delivery import deliver_due, retry_deliveries
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from tests.delivery.helpers import pass_time
from tests.helpers import make_run

IS_LONG = os.environ.get("RUN_CANCEL_FAULTS") == "long"
"""Whether to look for faults for minutes, rather than for seconds."""


class Crash(BaseException):
    """Ends what this process does, as its death would, with nothing to catch it."""


class TwoAtATime(Pace):
    """Lets each transaction of a bulk cancellation cancel two runs, however fast the machine is."""

    def __init__(self) -> None:
        self.size = 2

    def adapt(self, count: int, seconds: float) -> None:
        """Stay as it is."""


@contextmanager
def crash_before(statement: int) -> Iterator[None]:
    """Raise ``Crash`` instead of executing the statement with this number, and lose the session.

    Fewer statements than that are executed as they are.
    """
    left = statement

    def wrapper(execute: Callable[..., Any], *args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash
        return execute(*args)

    try:
        with connection.execute_wrapper(wrapper):
            yield
    except Crash:
        connection.close()
        raise


def book(item: CancellationItem) -> None:
    """Do what must happen once for a cancelled run: here, write another row."""
    now = timezone.now()
    make_run("completed", run_type="refund", external_id=item.run_id, finished_at=now)


def booked() -> list[str]:
    """Return the ids of the runs that ``book`` was called for, and committed."""
    refunds = get_run_model()._base_manager.filter(run_type="refund")
    return list(refunds.values_list("external_id", flat=True))


def empty_tables() -> None:
    """Delete all runs and cancellations."""
    runs = get_run_model()._base_manager
    with transaction.atomic():
        runs.filter(parent__isnull=False).update(parent=None)  # MySQL checks it row by row
        for rows in (
            CancellationItem.objects.all(),
            CancellationChunk.objects.all(),
            runs.all(),
            Cancellation.objects.all(),
        ):
            rows._raw_delete(rows.db)


def finish_everything() -> None:
    """Let a delivery worker do all that is left, however long that may take."""
    while advance_bulk_cancellations(60):
        pass
    for _ in range(100):
        pass_time(3_601)
        retry_deliveries()
        if not deliver_due():
            return
    raise AssertionError("The delivery worker has never done with its work.")
