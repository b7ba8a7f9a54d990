"""Every way to ask for a cancellation, with the answer in one form: ids cancelled, and not."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import NamedTuple

from django.core.management import CommandError, call_command
from django.test import Client

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from tests.admin.helpers import confirm, tick
from tests.helpers import ApiClient

Answer = tuple[list[str], list[str]]


class Clients(NamedTuple):
    """Who asks over HTTP."""

    api: ApiClient
    admin: Client


def by_function(clients: Clients, run_ids: list[str], force: bool) -> Answer:
    result = cancel_runs(run_ids, requested_by="tests", force=force)
    return result.cancelled, result.failed


def by_method(clients: Clients, run_ids: list[str], force: bool) -> Answer:
    run = get_run_model()._base_manager.get(run_id=run_ids[0])
    result = run.cancel(requested_by="tests", force=force)
    return result.cancelled, result.failed


def by_bulk_endpoint(clients: Clients, run_ids: list[str], force: bool) -> Answer:
    response = clients.api.send("/v1/runs/cancel", {"run_ids": run_ids, "force": force})
    assert response.status_code == 200, response.content
    return response.json()["cancelled"], response.json()["failed"]


def by_endpoint(clients: Clients, run_ids: list[str], force: bool) -> Answer:
    response = clients.api.send(f"/v1/runs/{run_ids[0]}/cancel", {"force": force})
    assert response.status_code in {200, 404, 409}, response.content
    if response.status_code == 200:
        assert response.json()["status"] == "cancelled"
        return run_ids[:1], []
    return [], run_ids[:1]


def by_admin(clients: Clients, run_ids: list[str], force: bool) -> Answer:
    runs = list(get_run_model()._base_manager.filter(run_id__in=run_ids))
    page = tick(clients.admin, runs)
    fields = {"force": "on"} if force else {}
    answer = confirm(clients.admin, page, **fields)
    assert answer.status_code == 302, answer.content
    return in_order(run_ids, *recorded())


def by_command(clients: Clients, run_ids: list[str], force: bool) -> Answer:
    with suppress(CommandError):  # that some are not cancelled
        call_command("cancel_runs", *run_ids, yes=True, force=force, stdout=io.StringIO())
    return in_order(run_ids, *recorded())


def recorded() -> Answer:
    """Return what the last record says."""
    record = Cancellation.objects.latest("pk")
    assert record.state in {"completed", "running"}
    items = CancellationItem.objects.filter(cancellation=record, via="requested")
    done = {"cancelled", "already_cancelled"}
    return (
        [item.run_id for item in items if item.outcome in done],
        [item.run_id for item in items if item.outcome not in done],
    )


def in_order(run_ids: list[str], *parts: list[str]) -> Answer:
    cancelled, failed = (sorted(part, key=run_ids.index) for part in parts)
    return cancelled, failed


FOR_ONE = {by_method, by_endpoint}
"""Ways to cancel the first run only."""

FOR_KNOWN = {by_method, by_admin}
"""Ways to cancel only runs that exist."""

WAYS = [by_function, by_method, by_bulk_endpoint, by_endpoint, by_admin, by_command]
