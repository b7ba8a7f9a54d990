"""Calls the host's handlers in the same transaction that marks their item as handled."""

from __future__ import annotations

import time

from django.db import Error, transaction
from django.utils.module_loading import import_string

from django_run_cancel.conf import settings
from django_run_cancel.delivery import outbox
from django_run_cancel.delivery.outbox import HANDLING, Claim
from django_run_cancel.models import CancellationItem
from django_run_cancel.states import Delivery

STEP_SECONDS = 5.0
"""Duration after which a step handles no further items, so that stop requests do not wait."""


def handle_due(limit: int) -> tuple[int, int]:
    """Call the handlers for items that are due.

    Items are claimed one at a time: if a handler kills the worker, other items lose no attempt.

    Args:
        limit: Maximum number of items.

    Returns:
        Number of handled items, and number of failed attempts.
    """
    handled = failed = 0
    until = time.monotonic() + STEP_SECONDS
    for _ in range(limit):
        if time.monotonic() > until:
            break
        claim = outbox.claim_due(HANDLING, 1) or outbox.claim_abandoned(HANDLING)
        if claim is None:
            break
        for item in claim.items:
            try:
                handled += _handle(claim, item)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - of the host
                values = outbox.handling_failure(claim, item, error)
                outbox.record(claim, {item.pk: values})
                failed += 1
    return handled, failed


def _handle(claim: Claim, item: CancellationItem) -> bool:
    """Call all handlers for an item; return False if another worker has claimed it since."""
    done = {"handling": Delivery.DELIVERED, "next_handling_at": None, "handling_error": ""}
    try:
        with transaction.atomic(using=outbox.database()):
            if not claim.rows().filter(pk=item.pk).update(**claim.released(**done)):
                return False
            for path in settings.HANDLERS:
                import_string(path)(item)
            # A database error that a handler has caught may have rolled back the transaction,
            # including our UPDATE. ``needs_rollback`` does not reveal a deadlock on MySQL.
            if not outbox.items().filter(pk=item.pk, handling=Delivery.DELIVERED).exists():
                raise Error("the item is not marked any more")
    except Error as error:
        error.add_note("If a handler caught an error of the database: wrap that in atomic().")
        raise
    return True
