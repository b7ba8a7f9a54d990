"""Cancelling all runs of a list: what is selected, what is refused, and what is asked before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib import admin
from django.core import signing
from django.db import OperationalError, connection
from django.test import Client

from django_run_cancel.admin.filters import StatusFilter
from django_run_cancel.cancellation import advance_bulk_cancellations, bulk
from django_run_cancel.models import Cancellation, get_run_model
from tests.admin.helpers import LIST, RECORDS, hidden, logged_in, said, text, tick, words
from tests.helpers import make_run, make_runs, statuses

pytestmark = pytest.mark.django_db

ALL = f"{LIST}cancel-all/"
REFUSED = "It is not clear which runs are meant, and nothing has been cancelled."


@pytest.fixture
def page_class() -> Any:
    return admin.site.get_model_admin(get_run_model())


def ask(client: Client, query: str) -> Any:
    """Choose "Select all" in a list, and return the page that asks."""
    answer = tick(client, list(get_run_model()._base_manager.all()[:1]), query, select_across="1")
    assert answer["Location"] == ALL + query
    return client.get(answer["Location"])


def send(client: Client, page: Any, **fields: Any) -> Any:
    return client.post(ALL, {**hidden(page), **fields})


def is_refused(answer: Any) -> bool:
    message = said(answer)[-1]  # Django may have one of its own
    return bool(
        answer["Location"] == LIST
        and message.startswith(REFUSED)
        and not Cancellation.objects.exists()
    )


def test_asks_then_starts_then_leads_to_the_cancellation(chief: Client) -> None:
    queued, running = make_runs(30, title="Import"), make_runs(2, "running")
    first = min(queued, key=lambda run: run.pk)  # the page shows some runs, in the order of keys
    child, finished = first.create_child(title="Below"), make_run("completed")
    page = ask(chief, "?status=queued&o=4")
    shown = words(page)
    assert "30 runs will be cancelled , and whatever is active below them." in shown
    assert "Those of the list that are active, filtered by: Status: queued." in shown
    assert "Yes, cancel 30 runs" in shown
    assert text(page).count("<td>Import</td>") == bulk.SAMPLE_SIZE
    assert text(page).count("<td>Below</td>") == 1
    assert "all active runs" not in shown
    assert len(hidden(page)["selection"]) < 200
    assert 'name="run_ids"' not in text(page)

    answer = send(chief, page, reason="Wrong year", force="on")
    record = Cancellation.objects.get()
    assert answer["Location"] == f"{RECORDS}{record.pk}/change/"
    assert said(answer) == ["30 runs are being cancelled by the delivery worker."]
    assert (record.requested_by, record.source, record.reason) == ("chief", "admin", "Wrong year")
    assert (record.state, record.total_count, record.force) == ("pending", 30, True)
    assert record.selection == {"filter": {"status": "queued"}}
    assert set(statuses(*queued)) == {"queued"}
    advance_bulk_cancellations(10)
    assert set(statuses(*queued, child)) == {"cancelled"}
    assert statuses(*running, finished) == ["running", "running", "completed"]


def test_search_and_dates_select_too(chief: Client) -> None:
    late, other = make_run(title="Import"), make_run(title="Export")
    old = make_run(title="Import", created_at="2026-01-01T00:00Z")
    page = ask(chief, "?q=import&created_at__gte=2026-02-01T00%3A00Z")
    assert "filtered by: Created at ≥ 01/31/2026 20:30:00; Search: import." in words(page)
    send(chief, page)
    advance_bulk_cancellations(10)
    assert statuses(late, other, old) == ["cancelled", "queued", "queued"]


def test_runs_that_come_later_are_not_touched(chief: Client) -> None:
    early = make_run()
    page = ask(chief, "?status=queued")
    late = make_run()
    send(chief, page)
    advance_bulk_cancellations(10)
    assert statuses(early, late) == ["cancelled", "queued"]


def test_runs_that_ended_while_the_page_was_read(chief: Client) -> None:
    run = make_run(title="Import")
    page = ask(chief, "?q=import")
    assert "1 run will be cancelled" in words(page)
    get_run_model()._base_manager.filter(pk=run.pk).update(status="completed")
    assert said(send(chief, page)) == ["There is nothing left to cancel."]
    advance_bulk_cancellations(10)
    assert statuses(run) == ["completed"]


def test_large_numbers_have_separators(chief: Client) -> None:
    make_runs(1_234)
    shown = words(ask(chief, "?status=queued"))
    assert "1,234 runs will be cancelled" in shown
    assert "Yes, cancel 1,234 runs" in shown
    listed = words(chief.get(f"{LIST}?status=queued"))
    assert "1,234 runs" in listed
    assert "All 1,234 selected" in listed
    sent = send(chief, chief.get(f"{ALL}?status=queued"))
    assert said(sent) == ["1,234 runs are being cancelled by the delivery worker."]


@pytest.mark.parametrize("query", ["", "?status=active", "?o=4", "?q=+"])
def test_without_a_filter__needs_a_tick_of_its_own(chief: Client, query: str) -> None:
    run = make_run()
    page = ask(chief, query)
    assert "Yes, all active runs: no filter is set" in words(page)
    again = send(chief, page, reason="why")
    assert "please confirm that you mean all" in words(again)
    assert again.context["form"]["reason"].value() == "why"
    assert not Cancellation.objects.exists()
    send(chief, again, reason="why", everything="on")
    advance_bulk_cancellations(10)
    assert statuses(run) == ["cancelled"]


def test_counts_no_further_than_it_says(chief: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PREVIEW_LIMIT", 5)
    make_runs(6)
    shown = words(ask(chief, "?status=queued"))
    assert "More than 5 runs will be cancelled" in shown
    assert "Yes, cancel more than 5 runs" in shown


def test_the_page_of_the_list_does_not_matter(chief: Client) -> None:
    make_runs(2)
    assert "2 runs will be cancelled" in words(chief.get(f"{ALL}?status=queued&p=7&all=&e=1"))


@pytest.mark.parametrize("query", ["?status=completed", "?status=nonsense"])
def test_nothing_left_to_cancel(chief: Client, query: str) -> None:
    make_run("completed")
    page = ask(chief, query)
    assert "There is nothing left to cancel." in words(page)
    assert "Yes, cancel" not in words(page)


def test_no_runs_at_all(chief: Client) -> None:
    page = chief.get(ALL)
    assert "There is nothing left to cancel." in words(page)
    send(chief, page, everything="on")
    assert Cancellation.objects.get().state == "completed"


class TestRefused:
    @pytest.mark.parametrize(
        "query",
        [
            *["nonsense=1", "created_at__gte=nonsense", "password=x", "parent__password=x"],
            *["q=%00", "status__nonsense=1", "id__exact=a", "tenant__in=%00"],
        ],
    )
    def test_query_string_that_selects_nothing_clear(self, chief: Client, query: str) -> None:
        make_run()
        answer = chief.get(f"{ALL}?{query}")
        if answer.status_code == 200:
            assert "There is nothing left to cancel." in words(answer)
        else:
            assert is_refused(answer)

    @pytest.mark.parametrize(
        "sent",
        [
            *["", "nonsense", "\0", "9" * 5_000, "a:b:c", "[" * 10_000],
        ],
    )
    def test_selection_that_was_not_shown(self, chief: Client, sent: str) -> None:
        make_run()
        page = ask(chief, "?status=queued")
        assert is_refused(send(chief, page, selection=sent))
        assert is_refused(chief.post(ALL, {"token": "t"}))

    def test_selection_that_was_tampered_with(self, chief: Client) -> None:
        make_run()
        page = ask(chief, "?status=queued")
        value, rest = hidden(page)["selection"].split(":", 1)
        other = signing.b64_encode(json.dumps(["", None]).encode()).decode()
        assert value != other
        assert is_refused(send(chief, page, selection=f"{other}:{rest}"))

    def test_selection_that_was_signed_for_something_else(self, chief: Client) -> None:
        make_run()
        page = ask(chief, "?status=queued")
        assert is_refused(send(chief, page, selection=signing.dumps(["", None])))

    def test_selection_of_somebody_else(self, chief: Client) -> None:
        make_run()
        page = ask(chief, "?status=queued")
        assert is_refused(send(logged_in("other", is_superuser=True), page))

    def test_filter_without_effect(
        self, chief: Client, page_class: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The list shows everything then, and so would the selection be everything."""

        class Decade(admin.SimpleListFilter):
            title = parameter_name = "decade"

            def lookups(self, *args: Any) -> list[tuple[str, str]]:
                return [("80s", "eighties")]

            def queryset(self, request: Any, queryset: Any) -> Any:
                return queryset.none() if self.value() == "80s" else None

        monkeypatch.setattr(page_class, "list_filter", (Decade, StatusFilter))
        make_run()
        assert "There is nothing left to cancel." in words(chief.get(f"{ALL}?decade=80s"))
        assert is_refused(chief.get(f"{ALL}?decade=90s"))

    def test_filter_that_is_gone_when_it_is_sent(
        self, chief: Client, page_class: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one with nothing left to choose from: Django then ignores its parameter."""
        make_run()
        page = ask(chief, "?status=queued")
        monkeypatch.setattr(StatusFilter, "has_output", lambda self: False)
        assert is_refused(send(chief, page))

    def test_search_that_is_ignored(
        self, chief: Client, page_class: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_run()
        monkeypatch.setattr(page_class, "get_search_results", lambda r, rows, term: (rows, False))
        assert is_refused(chief.get(f"{ALL}?q=import"))

    def test_by_date_hierarchy(
        self, chief: Client, page_class: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page_class, "date_hierarchy", "created_at")
        make_run(created_at="2025-05-05T00:00Z")
        make_run()
        shown = words(chief.get(f"{ALL}?created_at__year=2025&created_at__month=5"))
        assert "1 run will be cancelled" in shown
        assert is_refused(chief.get(f"{ALL}?created_at__year=x"))


class TestWho:
    def test_keeps_to_the_runs_of_the_admin(
        self, chief: Client, page_class: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = make_run(tenant="ours"), make_run(tenant="theirs")
        everything = page_class.get_queryset
        monkeypatch.setattr(
            page_class, "get_queryset", lambda request: everything(request).filter(tenant="ours")
        )
        send(chief, ask(chief, ""), everything="on")
        advance_bulk_cancellations(10)
        assert statuses(ours, theirs) == ["cancelled", "queued"]

    @pytest.mark.parametrize("names", [("view_run", "view_job"), ("cancel_run",)])
    def test_needs_both_permissions(self, chief: Client, names: tuple[str, ...]) -> None:
        make_run()
        client = logged_in("operator", *names)
        assert client.get(ALL).status_code == 403
        assert send(client, chief.get(ALL)).status_code == 403

    def test_who_may_not_read_the_record_returns_to_the_list(self) -> None:
        operator = logged_in("operator", "view_run", "view_job", "cancel_run")
        make_run()
        page = ask(operator, "?status=queued")
        assert 'name="force"' not in text(page)
        answer = send(operator, page, force="on")
        assert answer["Location"] == f"{LIST}?status=queued"
        assert not Cancellation.objects.get().force


def test_sent_twice(chief: Client) -> None:
    make_run()
    page = ask(chief, "?status=queued")
    first, second = send(chief, page), send(chief, page)
    assert first["Location"] == second["Location"]
    again = send(chief, page, reason="another")
    assert "This page was sent before, with other entries." in words(again)
    assert Cancellation.objects.count() == 1
    assert send(chief, again, reason="another").status_code == 302
    assert Cancellation.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_busy_database(chief: Client) -> None:
    make_run()
    page = ask(chief, "?status=queued")

    def fail(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("INSERT") and "cancellation" in sql:
            raise OperationalError("database is locked")
        return execute(sql, *args)

    with connection.execute_wrapper(fail):
        again = send(chief, page, reason="why")
    assert "The database is busy. Nothing has been changed" in words(again)
    assert send(chief, again).status_code == 302
