"""Calling the handlers of the host, each in the transaction that marks its item as handled."""

from __future__ import annotations

import time

from django.db import Error, transaction
from django.utils.module_loading import import_string

from django_run_cancel.conf import settings
from django_run_cancel.models import CancellationItem
from django_run_cancel.outbox import HANDLING, claim, claimed, database, failure
from django_run_cancel.states import Delivery

STEP_SECONDS = 5.0
"""After which no further item is begun: executors must be told meanwhile."""


def handle_due(limit: int) -> tuple[int, int]:
    """Call the handlers of items that are due.

    One item at a time is claimed, so that a handler which ends the worker costs no other item an
    attempt.

    Args:
        limit: How many items at most.

    Returns:
        How many items were handled, and how many attempts failed.
    """
    handled = failed = 0
    until = time.monotonic() + STEP_SECONDS
    for _ in range(limit):
        if time.monotonic() > until or not (items := claim(HANDLING, 1)):
            break
        item = items[0]
        ours = claimed(HANDLING, item).filter(pk=item.pk)
        try:
            with transaction.atomic(using=database()):
                if not ours.update(
                    handling=Delivery.DELIVERED, next_handling_at=None, handling_error=""
                ):
                    continue  # this process was held up, and the claim is void
                for path in settings.HANDLERS:
                    import_string(path)(item)
                # An error that a handler has caught may have undone all of it, this included. Not
                # each shows in needs_rollback: not a deadlock on MySQL.
                done = CancellationItem.objects.using(database()).filter(pk=item.pk)
                if not done.filter(handling=Delivery.DELIVERED).exists():
                    raise Error("the item is not marked any more")
            handled += 1
        except Error as error:
            error.add_note("If a handler caught an error of the database: wrap that in atomic().")
            ours.update(**failure(HANDLING, item, error))
            failed += 1
        except (Exception, SystemExit) as error:  # noqa: BLE001 - of the host
            ours.update(**failure(HANDLING, item, error))
            failed += 1
    return handled, failed
