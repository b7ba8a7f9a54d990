"""Calling the handlers of the host, each in the transaction that marks its item as handled."""

from __future__ import annotations

from django.db import connections, transaction
from django.utils.module_loading import import_string

from django_run_cancel.conf import settings
from django_run_cancel.outbox import HANDLING, claim, claimed, database, failure
from django_run_cancel.states import Delivery


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
    for _ in range(limit):
        if not (items := claim(HANDLING, 1)):
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
                if connections[database()].needs_rollback:  # or it would be undone without a word
                    raise RuntimeError(
                        "A handler caught an error of the database: wrap in atomic()"
                    )
            handled += 1
        except (Exception, SystemExit) as error:  # noqa: BLE001 - of the host
            ours.update(**failure(HANDLING, item, error))
            failed += 1
    return handled, failed
