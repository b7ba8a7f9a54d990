"""Bulk cancellations that a command advances itself, until they have ended or it is interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from django.db import router

from django_run_cancel.cancellation.chunks import advance_bulk_cancellations
from django_run_cancel.cancellation.progress import progress_of
from django_run_cancel.models import Cancellation, CancellationChunk
from django_run_cancel.states import UNSETTLED, ChunkState

LOOK_SECONDS = 0.5
"""Time between two looks at how far it is."""

REST_SECONDS = 0.1
"""What is left is being cancelled by other processes, or has been put off."""


def advance(record: Cancellation, signals: Sequence[int]) -> Iterator[int]:
    """Cancel the runs of a bulk cancellation, and yield how many more have been dealt with.

    Other processes may do so at the same time. It ends when the cancellation has ended or, while
    runs are left, after the transaction in which a signal arrives.

    Args:
        record: The cancellation; its state is up to date in the end.
        signals: Filled while this is at work.

    Raises:
        DatabaseError: The database gives up.
    """
    using = router.db_for_write(Cancellation)
    seen, next_look = 0, 0.0
    while True:
        done = advance_bulk_cancellations(0, Cancellation.objects.filter(pk=record.pk))
        if not done or time.monotonic() > next_look:
            record.refresh_from_db(using=using)
            processed = progress_of([record])[record.pk].processed_count
            yield processed - seen
            seen, next_look = processed, time.monotonic() + LOOK_SECONDS
        if record.state not in UNSETTLED or (signals and _is_anything_left(record)):
            return
        if not done:
            time.sleep(REST_SECONDS)


def _is_anything_left(record: Cancellation) -> bool:
    chunks = CancellationChunk.objects.using(record._state.db)
    return chunks.filter(cancellation=record, state=ChunkState.PENDING).exists()
