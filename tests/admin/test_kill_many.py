"""Killing many runs: those of a cancellation that are still stopping, and those of a selection."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.admin import confirm
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from tests.admin.helpers import (
    KILL,
    LIST,
    LOOKS,
    RECORDS,
    hidden,
    logged_in,
    make_stopping,
    said,
    text,
    words,
)
from tests.helpers import make_run

pytestmark = pytest.mark.django_db


def test_kill__of_a_cancellation(chief: Client) -> None:
    record, other = make_stopping(3), make_stopping()
    CancellationItem.objects.update(delivery="failed")
    url = f"{RECORDS}{record.pk}/change/"
    page = chief.get(url)
    assert "Kill what is stopping…" in words(page)
    query = {"cancellation_id": record.cancellation_id, "next": url}
    page = chief.get(KILL, query)
    shown = words(page)
    assert "Kill these runs now?" in shown
    assert "3 runs are still stopping and will be killed, if their executors can." in shown
    answer = chief.post(KILL, {**hidden(page), "reason": "They do not stop"})
    assert answer["Location"] == url
    expected = "3 runs were still stopping. Their executors are told to kill them."
    assert said(answer) == [f"{expected} What happened to each"]
    assert set(record.items.values_list("force", "delivery")) == {(True, "pending")}
    assert not other.items.get().force


def test_kill__of_a_large_cancellation__the_others_follow(chief: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(confirm, "MAX_RUN_IDS", 2)
    record = make_stopping(5)
    CancellationItem.objects.update(delivery="delivered")
    runs = get_run_model()._base_manager.order_by("pk")
    without_executor = runs[0]
    runs.filter(pk=without_executor.pk).update(external_id="")
    query = {"cancellation_id": record.cancellation_id}
    note = "More than 2 runs of the cancellation can be killed. These are the first:"
    page = chief.get(KILL, query)
    shown = words(page)
    assert note in shown
    assert "2 runs are still stopping and will be killed" in shown
    chief.post(KILL, hidden(page))
    CancellationItem.objects.filter(force=True).update(delivery="delivered")

    page = chief.get(KILL, query)
    shown = words(page)
    assert note not in shown
    assert "2 runs are still stopping and will be killed" in shown
    chief.post(KILL, hidden(page))
    told = CancellationItem.objects.filter(force=True, delivery="pending")
    assert told.count() == 2
    assert "There is nothing left to kill." in words(chief.get(KILL, query))

    told.update(delivery="failed")
    assert "2 runs are still stopping and will be killed" in words(chief.get(KILL, query))
    assert not record.items.get(run_id=without_executor.run_id).force


def test_kill__of_a_large_cancellation__said_again_when_the_page_was_invalid(
    chief: Client, monkeypatch: Any
) -> None:
    monkeypatch.setattr(confirm, "MAX_RUN_IDS", 2)
    record = make_stopping(3)
    page = chief.get(KILL, {"cancellation_id": record.cancellation_id})
    again = chief.post(KILL, {**hidden(page), "reason": "x" * 3_000})
    note = "More than 2 runs of the cancellation can be killed. These are the first:"
    assert note in words(again)
    assert hidden(again)["cancellation_id"] == record.cancellation_id
    assert "2 runs are still stopping and will be killed" in words(again)
    assert said(chief.post(KILL, {**hidden(again), "reason": "It does not stop"}))[0].startswith(
        "2 runs were still stopping."
    )
    # Its executor has been told of the first two.
    page = chief.get(KILL, {"cancellation_id": record.cancellation_id})
    again = chief.post(KILL, {**hidden(page), "reason": "x" * 3_000})
    assert note not in words(again)


@pytest.mark.parametrize("count", [2, 40])
def test_kill__of_a_cancellation__statements(chief: Client, count: int) -> None:
    """As many for two runs as for any number."""
    record = make_stopping(count)
    with CaptureQueriesContext(connection) as captured:
        page = chief.get(KILL, {"cancellation_id": record.cancellation_id})
    assert f"{count} runs are still stopping and will be killed" in words(page)
    sent = [entry["sql"] for entry in captured if "SAVEPOINT" not in entry["sql"]]
    assert len(sent) <= 13, sent


def test_record_of_the_kill_says_nothing_of_the_end(chief: Client) -> None:
    record = make_stopping()
    page = chief.get(KILL, {"cancellation_id": record.cancellation_id})
    chief.post(KILL, hidden(page))
    killing = Cancellation.objects.latest("pk")
    assert killing != record
    shown = words(chief.get(f"{RECORDS}{killing.pk}/change/"))
    assert "no run was cancelled" in shown
    assert "no run is stopping" not in shown


@pytest.mark.parametrize("cancellation_id", ["can_unknown", "\0", "x" * 400])
def test_of_no_cancellation(chief: Client, cancellation_id: str) -> None:
    shown = words(chief.get(KILL, {"cancellation_id": cancellation_id}))
    assert "There is nothing left to kill." in shown
    assert "Yes, kill now" not in shown


@pytest.mark.parametrize("missing", ["view_run", "cancel_run", "force_cancel_run"])
def test_needs_all_permissions(missing: str) -> None:
    record = make_stopping()
    names = {*LOOKS, "cancel_run", "force_cancel_run"} - {missing}
    names -= {"view_job"} if missing == "view_run" else set()
    client = logged_in("operator", *names)
    shown = words(client.get(f"{RECORDS}{record.pk}/change/"))
    assert "cancelled, some runs are stopping" in shown
    assert "Kill what is stopping" not in shown
    query = {"cancellation_id": record.cancellation_id}
    assert client.get(KILL, query).status_code == 403
    if missing != "view_run":
        assert 'value="kill_selected"' not in text(client.get(LIST))


def test_host_without_an_admin_of_runs(chief: Client, monkeypatch: Any) -> None:
    record = make_stopping()
    monkeypatch.delitem(admin.site._registry, get_run_model())
    shown = words(chief.get(f"{RECORDS}{record.pk}/change/"))
    assert "Kill what is stopping" not in shown


def test_action(chief: Client) -> None:
    record = make_stopping(2)
    active = make_run("running", started_at=timezone.now())
    pks = [run.pk for run in get_run_model()._base_manager.all()]
    sent = {"action": "kill_selected", "_selected_action": pks}
    page = chief.post(f"{LIST}?tenant=", sent)
    shown = words(page)
    assert "2 runs are still stopping and will be killed, if their executors can." in shown
    assert "1 run will be cancelled . What has started is killed, if its executor can." in shown
    answer = chief.post(KILL, hidden(page))
    assert answer["Location"] == f"{LIST}?tenant="
    assert set(record.items.values_list("force", flat=True)) == {True}
    active.refresh_from_db()
    assert (active.status, active.cancellation.force) == ("cancelled", True)
