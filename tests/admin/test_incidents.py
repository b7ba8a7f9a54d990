"""What lists say of runs and executors that need a hand, and how one gets from there to an end."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.test import Client

from django_run_cancel.admin import announcements
from django_run_cancel.cancellation import (
    advance_bulk_cancellations,
    cancel_runs,
    start_bulk_cancellation,
)
from django_run_cancel.cancellation.chunks import advance_chunk
from django_run_cancel.models import (
    ApiKey,
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from tests.admin.helpers import (
    KEYS,
    LIST,
    LOOKS,
    RECORDS,
    ago,
    logged_in,
    make_stopping,
    page_of,
    text,
    words,
)
from tests.helpers import ids, make_run, make_runs

pytestmark = pytest.mark.django_db

ITEMS = "/admin/django_run_cancel/cancellationitem/"


class TestRunsThatGoOnStopping:
    def test_within_the_grace__are_not_announced(self, chief: Client) -> None:
        make_stopping(minutes=0)
        assert "still stopping" not in words(chief.get(LIST))

    def test_are_announced_with_a_link(self, chief: Client) -> None:
        make_stopping()
        page = chief.get(LIST)
        assert "1 cancelled run is still stopping, for 34 min. See which" in words(page)
        assert f'href="{LIST}?stop_state=stopping"' in text(page)
        make_stopping(2, minutes=3)
        expected = "3 cancelled runs are still stopping, the longest for 34 min."
        assert expected in words(chief.get(LIST))

    def test_more_than_are_counted(self, chief: Client, monkeypatch: Any) -> None:
        monkeypatch.setattr(announcements, "OLDEST_STOPPING", 1)
        make_stopping(2)
        expected = "More than 1 cancelled runs are still stopping, the longest for 34 min."
        assert expected in words(chief.get(LIST))

    def test_of_others_are_not_announced(self, chief: Client, monkeypatch: Any) -> None:
        make_stopping(tenant="theirs")
        page = admin.site._registry[get_run_model()]
        ours = get_run_model()._base_manager.filter(tenant="ours")
        monkeypatch.setattr(page, "get_queryset", lambda request: ours)
        assert "still stopping" not in words(chief.get(LIST))

    def test_nothing_is_told_who_may_not_look(self) -> None:
        make_stopping()
        CancellationItem.objects.update(delivery="failed")
        client = logged_in("other", "view_apikey")
        assert client.get(LIST).status_code == 403
        shown = words(client.get(KEYS))
        assert "still stopping" not in shown
        assert "could not be told" not in shown

    def test_are_a_choice_of_the_first_filter(self, chief: Client) -> None:
        stopping = make_stopping().items.get().run_id
        make_run("running")
        listed = chief.get(f"{LIST}?status=stopping").context["cl"]
        assert ids(listed.result_list) == [stopping]

    def test_list_says_for_how_long(self, chief: Client) -> None:
        make_stopping()
        assert "cancelled, stopping for 34 min" in words(chief.get(LIST))
        make_run("running", started_at=ago(hours=3.5))
        assert "running for 3 h" in words(chief.get(LIST))
        get_run_model()._base_manager.all().delete()
        make_run(queued_at=ago(minutes=34.5))
        assert "for 34 min" not in words(chief.get(LIST))  # nothing of it goes on

    def test_time_that_is_not_known(self, chief: Client) -> None:
        """As of rows that a host has written by hand."""
        run_id = make_stopping().items.get().run_id
        get_run_model()._base_manager.update(finished_at=None)
        page = words(chief.get(LIST))
        assert "cancelled, stopping" in page
        assert "still stopping" not in page
        assert run_id[-6:] in page


class TestFailedDeliveries:
    def test_are_announced_on_the_list_of_runs_too(self, chief: Client) -> None:
        make_stopping()
        CancellationItem.objects.update(delivery="failed")
        expected = "1 executor could not be told that its run is cancelled."
        for url in (LIST, RECORDS, ITEMS):
            page = chief.get(url)
            assert f"{expected} See which" in words(page)
            assert f'href="{ITEMS}?delivery__exact=failed"' in text(page)
        looker = words(logged_in("looker", *LOOKS).get(LIST))
        assert expected in looker
        assert f"{expected} See which" not in looker

    def test_page_of_the_run_leads_to_another_try(self, chief: Client) -> None:
        record = make_stopping()
        CancellationItem.objects.update(delivery="failed", last_error="broker is <away>")
        run = get_run_model()._base_manager.get()
        page = chief.get(page_of(run))
        assert "not tried again: broker is <away> Try again…" in words(page)
        assert f'href="{RECORDS}{record.pk}/retry/"' in text(page)
        looker = logged_in("looker", *LOOKS)
        assert "Try again…" not in words(looker.get(page_of(run)))

    def test_page_that_asks_says_why(self, chief: Client) -> None:
        record = make_stopping()
        CancellationItem.objects.update(delivery="failed")
        assert "One of the errors" not in words(chief.get(f"{RECORDS}{record.pk}/retry/"))
        CancellationItem.objects.update(last_error="broker is <away>")
        shown = words(chief.get(f"{RECORDS}{record.pk}/retry/"))
        assert "One of the errors: broker is <away>" in shown


class TestPageOfARun:
    def test_when_its_code_was_last_heard_of(self, chief: Client) -> None:
        run = make_run("running")
        assert "last heard of" not in words(chief.get(page_of(run)))
        runs = get_run_model()._base_manager.filter(pk=run.pk)
        runs.update(heartbeat_at=ago(hours=2.5))
        assert "Its code was last heard of 2 h ago, at " in words(chief.get(page_of(run)))
        cancel_runs([run.run_id], requested_by="x")
        shown = words(chief.get(page_of(run)))
        assert "Its code was last heard of 2 h ago, at " in shown
        assert "cancelled at" in shown
        assert "finished at" not in shown
        runs.update(stop_state="acknowledged")
        assert "last heard of" not in words(chief.get(page_of(run)))


class TestLists:
    def test_cancellations(self, chief: Client) -> None:
        make_stopping(2)
        CancellationItem.objects.update(delivery="failed")
        parent = make_run()
        parent.create_child()
        cancel_runs([parent.run_id, "unknown"], requested_by="operator")
        listed = words(chief.get(RECORDS))
        assert "night watch Disk full cancelled, some runs are stopping failed deliver" in listed
        assert "2 of 2 can_" in listed
        assert "operator cancelled, no run is stopping 1 of 2 1 below can_" in listed

    def test_bulk_cancellation(self, chief: Client) -> None:
        make_runs(3)
        runs = get_run_model()._base_manager.all()
        start_bulk_cancellation(runs, requested_by="chief", reason="Wrong year")
        listed = words(chief.get(RECORDS))
        assert "chief Wrong year waiting for the delivery worker 0 of 3" in listed
        advance_bulk_cancellations(10)
        listed = words(chief.get(RECORDS))
        assert "chief Wrong year cancelled, no run is stopping 3 of 3" in listed

    def test_items(self, chief: Client) -> None:
        make_stopping(title="Export of the ledger")
        CancellationItem.objects.update(delivery="failed", last_error="broker is <away>")
        listed = words(chief.get(ITEMS))
        run_id = CancellationItem.objects.get().run_id
        assert (
            f"Export of the ledger {run_id[:-6]} {run_id[-6:]} cancelled (requested) "
            "cancelled, stopping failed broker is <away> night watch can_"
        ) in listed

    @pytest.mark.parametrize("url", [LIST, RECORDS, ITEMS])
    def test_statements(self, chief: Client, url: str, django_assert_max_num_queries: Any) -> None:
        for _ in range(5):
            make_stopping(4)
        CancellationItem.objects.update(delivery="failed")
        with django_assert_max_num_queries(16):
            chief.get(url)

    def test_keys(self, chief: Client) -> None:
        key, _secret = ApiKey.issue("Night jobs", tenant="acme")
        key.last_used_at = ago(minutes=5.5)
        key.read_only = True
        key.save()
        listed = words(chief.get(KEYS))
        assert f"Night jobs {key.prefix} acme works, read only 0 s 5 min" in listed
        page = text(chief.post(f"{KEYS}add/", {"name": "CI", "tenant": ""}))
        assert f'<a href="{KEYS}">API keys</a>' in page


def test_filter_with_several_values__in_words(chief: Client) -> None:
    make_runs(2)
    runs = get_run_model()._base_manager.all()
    selection = {"filter": {"status": ["queued", "paused"]}}
    record = start_bulk_cancellation(runs, requested_by="x", selection=selection).cancellation
    shown = words(chief.get(f"{RECORDS}{record.pk}/change/"))
    assert "Selected: Status: queued, paused" in shown


@pytest.mark.usefixtures("fixed_pace")
def test_bulk_cancellation_that_stands_still__no_end_is_foretold(chief: Client) -> None:
    make_runs(1_000)
    runs = get_run_model()._base_manager.all()
    record = start_bulk_cancellation(runs, requested_by="x").cancellation
    advance_chunk(record.pk)
    shown = words(chief.get(f"{RECORDS}{record.pk}/change/"))
    assert "1,000 runs" in shown
    Cancellation.objects.update(requested_at=ago(minutes=21))
    CancellationChunk.objects.update(advanced_at=ago(minutes=20.5))
    shown = words(chief.get(f"{RECORDS}{record.pk}/change/"))
    assert "a second" in shown
    assert "left, until" not in shown
    assert "A bulk cancellation has not gone on for 20 min." in shown
