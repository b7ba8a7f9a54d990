"""Calling the handlers of the host, each in the transaction that marks its item as handled."""

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
        if time.monotonic() > until:
            break
        claim = outbox.claim_due(HANDLING, 1) or outbox.claim_abandoned(HANDLING)
        if claim is None:
            break
        for item in claim.items:
            try:
                handled += _handle(claim, item)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - of the host
                values = outbox.failed_handling(claim, item, error)
                outbox.record(claim, {item.pk: values})
                failed += 1
    return handled, failed


def _handle(claim: Claim, item: CancellationItem) -> bool:
    """Call all handlers, and tell whether the claim still held."""
    done = {"handling": Delivery.DELIVERED, "next_handling_at": None, "handling_error": ""}
    try:
        with transaction.atomic(using=outbox.database()):
            if not claim.rows().filter(pk=item.pk).update(**claim.released(**done)):
                return False
            for path in settings.HANDLERS:
                import_string(path)(item)
            # An error that a handler has caught may have undone all of it, this included. Not
            # each shows in needs_rollback: not a deadlock on MySQL.
            if not outbox.items().filter(pk=item.pk, handling=Delivery.DELIVERED).exists():
                raise Error("the item is not marked any more")
    except Error as error:
        error.add_note("If a handler caught an error of the database: wrap that in atomic().")
        raise
    return True
