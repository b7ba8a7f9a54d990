"""The record in the admin: a cancellation's page, its items, and nothing that writes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client

from django_run_cancel.admin import announcements, cancellation_page
from django_run_cancel.admin.items import SHOWN_ITEMS
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.origin import Origin
from django_run_cancel.models import ApiKey, Cancellation, CancellationItem, get_run_model
from tests.admin.helpers import LIST, RECORDS, logged_in, messages_of, said, text, tick, words
from tests.admin.helpers import confirm as confirmed
from tests.helpers import ids, make_run, make_runs

pytestmark = pytest.mark.django_db

ITEMS = "/admin/django_run_cancel/cancellationitem/"


def test_page_shows_the_request_and_what_happened(chief: Client) -> None:
    run, finished = make_run("running"), make_run("completed")
    child = run.create_child()
    key, _ = ApiKey.issue("billing")
    record = cancel_runs(
        [run.run_id, finished.run_id, "<b>unknown"],
        requested_by=key.label,
        tenant=key.tenant,
        reason="Disk full",
        source="api",
        origin=Origin("2001:db8::1", "req-7"),
    ).cancellation
    assert record is not None
    key.delete()
    page = chief.get(f"{RECORDS}{record.pk}/change/")
    shown = words(page)
    for part in (
        key.label,
        "Disk full",
        "2001:db8::1",
        "req-7",
        "API",
        "All, in a list of their own",
    ):
        assert part in shown
    for row in (
        f"{split(run.run_id)} cancelled (requested) cancelled, stopping running pending",
        f"{split(finished.run_id)} already finished (requested) - completed not needed",
        "<b>unknown not found (requested) - - not needed",
        f"{split(child.run_id)} cancelled (cascade) cancelled, never started created not needed",
    ):
        assert row in shown
    assert text(page).count("by-run-id/?run_id=") == 3


def split(run_id: str) -> str:
    """Return an id as it is when tags become spaces."""
    return f"{run_id[:-6]} {run_id[-6:]}"


def test_page_of_a_large_one_shows_the_first_and_links_to_all(chief: Client) -> None:
    runs = make_runs(SHOWN_ITEMS + 5)
    record = cancel_runs(ids(runs), requested_by="x").cancellation
    assert record is not None
    url = f"{RECORDS}{record.pk}/change/"
    page = text(chief.get(url))
    shown = [run.run_id in page for run in runs]
    assert shown == [True] * SHOWN_ITEMS + [False] * 5
    (following,) = re.findall(r'<a href="(\?[^"]+)">Next page</a>', page)
    rest = text(chief.get(url + following))
    assert [run.run_id in rest for run in runs] == [False] * SHOWN_ITEMS + [True] * 5
    assert "Next page" not in rest
    assert "First page" in rest
    cancel_runs([make_run().run_id], requested_by="x")
    listed = chief.get(f"{ITEMS}?cancellation__exact={record.pk}")
    assert listed.context["cl"].result_count == len(runs)


def test_search(chief: Client) -> None:
    run = make_run()
    records = [cancel_runs([run.run_id], requested_by="x").cancellation for _ in range(2)]
    other = cancel_runs(["unknown"], requested_by="x").cancellation
    assert other is not None

    def found(url: str, term: str) -> set[Any]:
        return set(chief.get(url, {"q": term}).context["cl"].result_list)

    assert found(RECORDS, run.run_id) == set(records)
    assert found(RECORDS, other.cancellation_id) == {other}
    assert found(RECORDS, "can_") == {*records, other}
    assert found(RECORDS, "CAN_") == set()
    assert found(RECORDS, "c") == {*records, other}
    assert found(ITEMS, run.run_id[:20]) == set(CancellationItem.objects.filter(run_id=run.run_id))
    assert found(ITEMS, "") == set(CancellationItem.objects.all())


def test_item(chief: Client) -> None:
    run = make_run("running")
    cancel_runs([run.run_id], requested_by="night watch")
    item = CancellationItem.objects.get()
    shown = words(chief.get(f"{ITEMS}{item.pk}/change/"))
    assert "cancelled, stopping" in shown
    assert f"night watch {split(item.cancellation.cancellation_id)}" in shown
    get_run_model()._default_manager.all().delete()
    assert "cancelled, stopping" not in words(chief.get(f"{ITEMS}{item.pk}/change/"))
    assert chief.get(f"{ITEMS}999999/change/").status_code == 302


@pytest.mark.parametrize("url", [LIST, RECORDS, ITEMS])
def test_lists_offer_nothing_that_writes(chief: Client, url: str) -> None:
    cancel_runs([make_run().run_id], requested_by="x")
    page = text(chief.get(url))
    assert "delete_selected" not in page
    assert f"{url}add/" not in page


def test_who_may_not_read_records_is_not_led_there(chief: Client) -> None:
    operator = logged_in("operator", "view_run", "view_job", "cancel_run")
    for client, linked in ((chief, True), (operator, False)):
        answer = confirmed(client, tick(client, [make_run()]))
        (message,) = messages_of(answer)
        record = Cancellation.objects.latest("pk")
        assert (f'href="{RECORDS}{record.pk}/change/"' in str(message)) is linked
    assert operator.get(RECORDS).status_code == 403


def test_host_without_an_admin_of_runs(chief: Client, monkeypatch: Any) -> None:
    """The record names the runs, and links to no page that is not there."""
    run = make_run()
    record = cancel_runs([run.run_id], requested_by="x").cancellation
    assert record is not None
    monkeypatch.delitem(admin.site._registry, get_run_model())
    page = text(chief.get(f"{RECORDS}{record.pk}/change/"))
    assert run.run_id in page
    assert "by-run-id" not in page
    item = CancellationItem.objects.get()
    assert "by-run-id" not in text(chief.get(f"{ITEMS}{item.pk}/change/"))


class TestFailedDeliveries:
    @pytest.fixture
    def failed(self) -> list[CancellationItem]:
        """Return the items of two cancellations, each of which could not be told."""
        for _ in range(2):
            cancel_runs([make_run("running").run_id], requested_by="x")
        CancellationItem.objects.update(delivery="failed", attempts=10, next_attempt_at=None)
        return list(CancellationItem.objects.all())

    @pytest.mark.parametrize("url", [RECORDS, ITEMS])
    def test_are_loud(self, chief: Client, failed: list[CancellationItem], url: str) -> None:
        page = text(chief.get(url))
        assert "2 executors could not be told that their runs are cancelled." in page
        assert f'href="{ITEMS}?delivery__exact=failed"' in page
        assert len(chief.get(f"{ITEMS}?delivery__exact=failed").context["cl"].result_list) == 2
        CancellationItem.objects.update(delivery="delivered")
        assert "could not be told" not in text(chief.get(url))

    def test_more_than_are_counted(
        self, chief: Client, failed: list[CancellationItem], monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(announcements, "MAX_COUNTED", 1)
        expected = "1+ executors could not be told that their runs are cancelled."
        assert expected in text(chief.get(ITEMS))
        monkeypatch.setattr(cancellation_page, "MAX_COUNTED", 1)
        record = failed[0].cancellation
        CancellationItem.objects.update(cancellation=record)
        assert expected in text(chief.get(f"{RECORDS}{record.pk}/retry/"))

    @pytest.mark.parametrize("url", [RECORDS, ITEMS])
    def test_are_tried_again(self, chief: Client, failed: list[CancellationItem], url: str) -> None:
        first = failed[0]
        key = first.cancellation_id if url == RECORDS else first.pk
        answer = chief.post(url, {"action": "retry", "_selected_action": key})
        assert said(answer) == ["1 delivery is due again."]
        first.refresh_from_db()
        assert (first.delivery, first.attempts) == ("pending", 0)
        assert first.next_attempt_at is not None
        assert CancellationItem.objects.filter(delivery="failed").count() == 1

    def test_nothing_to_try_again(self, chief: Client, failed: list[CancellationItem]) -> None:
        CancellationItem.objects.update(delivery="delivered")
        answer = chief.post(ITEMS, {"action": "retry", "_selected_action": failed[0].pk})
        assert said(answer) == ["No delivery has failed."]
        assert set(CancellationItem.objects.values_list("delivery", flat=True)) == {"delivered"}

    def test_not_by_who_may_only_look(self, failed: list[CancellationItem]) -> None:
        looker = logged_in("looker", "view_cancellation", "view_cancellationitem")
        looker.post(ITEMS, {"action": "retry", "_selected_action": failed[0].pk})
        assert CancellationItem.objects.filter(delivery="failed").count() == 2
