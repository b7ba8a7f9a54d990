"""The page of a cancellation: its summary, the table of its runs, abort and retry."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.utils import timezone

from django_run_cancel.admin import items, overview
from django_run_cancel.admin.items import SHOWN_ITEMS
from django_run_cancel.cancellation import (
    abort_bulk_cancellation,
    advance_bulk_cancellations,
    cancel_runs,
    chunks,
    record_stopped,
    start_bulk_cancellation,
)
from django_run_cancel.cancellation.chunks import Pace, advance_chunk
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from django_run_cancel.states import ChunkState
from tests.admin.helpers import RECORDS, logged_in, said, text, words
from tests.helpers import ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


@pytest.fixture
def reader() -> Client:
    return logged_in("reader", "view_cancellation")


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each transaction cancel ten runs, however fast the machine is."""

    class Fixed(Pace):
        def adapt(self, count: int, seconds: float) -> None:
            pass

    fixed = Fixed()
    fixed.size = 10
    monkeypatch.setattr(chunks, "_pace", fixed)


def url_of(record: Cancellation, page: str = "change") -> str:
    return f"{RECORDS}{record.pk}/{page}/"


def summary(client: Client, record: Cancellation, query: str = "") -> str:
    return words(client.get(url_of(record, "summary") + query)).replace(" ,", ",")


def refreshes(client: Client, record: Cancellation) -> str:
    found = re.search(r'data-seconds="(\d+)"', text(client.get(url_of(record, "summary"))))
    return found[1] if found else ""


def cancelled(*runs: Any, **fields: Any) -> Cancellation:
    record = cancel_runs(ids(list(runs)), requested_by="night watch", **fields).cancellation
    assert record is not None
    return record


def started(**selection: Any) -> Cancellation:
    runs = get_run_model()._base_manager.all()
    about = {"selection": {"filter": selection}, "requested_by": "operator", "source": "admin"}
    return start_bulk_cancellation(runs, **about).cancellation  # type: ignore[arg-type]


def set_record(record: Cancellation, **values: Any) -> None:
    Cancellation.objects.filter(pk=record.pk).update(**values)


class TestSummary:
    def test_of_runs_that_stop(self, chief: Client) -> None:
        run, waiting, finished = make_run("running"), make_run(), make_run("completed")
        before = make_run("running")
        run.create_child()
        cancelled(before)
        record = cancelled(run, waiting, finished, before, reason="Disk <full>", force=True)
        CancellationItem.objects.filter(run_id=run.run_id).update(
            delivery="failed", handling="failed"
        )
        shown = summary(chief, record)
        assert "cancelled, some runs are stopping asked for 0 s ago, at" in shown
        assert "Asked for by night watch (Python): Disk <full>" in shown
        assert "By force: what had started is killed at once" in shown
        for total in (
            *("asked for 4", "cancelled 2", "below, cancelled too 1", "never started 2"),
            *("stopping 1", "stopped 0", "cancelled before 1", "not cancelled 1"),
            *("failed deliveries 1", "failed handlers 1"),
        ):
            assert f" {total} " in shown
        assert "<progress" not in text(chief.get(url_of(record)))
        assert refreshes(chief, record) == "3"

        record_stopped([run.run_id], "killed")
        shown = summary(chief, record)
        assert "cancelled, no run is stopping" in shown
        assert " stopped 1 " in shown
        assert refreshes(chief, record) == ""

    def test_of_nothing(self, chief: Client) -> None:
        record = cancelled(make_run("completed"))
        shown = summary(chief, record)
        assert "no run was cancelled" in shown
        assert "Asked for by night watch (Python), without a reason." in shown

    def test_of_a_bulk_one(self, chief: Client) -> None:
        make_runs(30)
        record = started(status="queued", q="import")
        shown = summary(chief, record)
        assert "waiting for the delivery worker" in shown
        assert "Selected: Status: queued; Search: import" in shown
        assert "0 of 30 runs (0%)" in shown
        assert "a second" not in shown
        assert 'max="30" value="0"' in text(chief.get(url_of(record)))

        advance_chunk(record.pk)
        # Ten in ten seconds, so twenty seconds for the others.
        set_record(record, requested_at=timezone.now() - timedelta(seconds=10))
        shown = summary(chief, record)
        assert "runs are being cancelled" in shown
        assert re.search(
            r"10 of 30 runs \(33%\), 1\.0 a second, about (19|20) s left, until", shown
        )
        assert refreshes(chief, record) == "3"

        advance_bulk_cancellations(10)
        set_record(record, requested_at=timezone.now() - timedelta(seconds=1))
        shown = summary(chief, record)
        assert re.search(r"30 of 30 runs \(100%\), [23]\d a second", shown)
        assert re.search(r"asked for \d s ago, at [\d:]{8}, ended at [\d:]{8}", shown)
        assert "left" not in shown
        assert refreshes(chief, record) == ""

    def test_of_an_aborted_one(self, chief: Client) -> None:
        make_runs(30)
        record = started()
        advance_chunk(record.pk)
        record.refresh_from_db()
        abort_bulk_cancellation(record)
        shown = summary(chief, record)
        assert "aborted: not all runs were cancelled" in shown
        assert "Selected: all active runs" in shown
        assert "10 of 30 runs (33%)" in shown

    def test_of_one_with_ids(self, chief: Client) -> None:
        runs = get_run_model()._base_manager.all()
        record = start_bulk_cancellation(runs, run_ids=["a", "b"], requested_by="x").cancellation
        assert "Selected: 2 runs by their ids" in summary(chief, record)

    def test_of_one_that_could_not_be_written(self, chief: Client) -> None:
        make_runs(2)
        record = started()
        CancellationChunk.objects.update(state=ChunkState.FAILED, last_error="refused by <it>")
        set_record(record, state="failed")
        shown = summary(chief, record)
        assert "some runs could not be cancelled" in shown
        assert "Could not be written: refused by <it>" in shown

    def test_counts_no_further_than_it_says(
        self, chief: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(overview, "MAX_COUNTED", 2)
        record = cancelled(*make_runs(4), *make_runs(2, "running"))
        shown = summary(chief, record)
        assert " never started 2+ stopping 2 stopped 0 " in shown
        assert refreshes(chief, record) == "10"

    def test_says_that_the_worker_is_late__once(self, chief: Client) -> None:
        record = cancelled(make_run("running"))
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(minutes=9))
        assert words(chief.get(url_of(record))).count("been told 9 min ago that") == 1
        summary(chief, record)
        assert words(chief.get(url_of(record))).count("been told 9 min ago that") == 1

    def test_is_shown_by_the_page_too(self, reader: Client) -> None:
        record = cancelled(make_run())
        assert "cancelled, no run is stopping" in words(reader.get(url_of(record)))
        assert reader.post(url_of(record, "summary")).status_code == 405


class TestTable:
    def runs_of(self, client: Client, record: Cancellation, query: str = "") -> set[str]:
        page = text(client.get(url_of(record) + query))
        return set(re.findall(r'<code class="run-cancel-id" title="([^"]+)"', page))

    def links(self, client: Client, record: Cancellation, query: str = "") -> dict[str, str]:
        page = text(client.get(url_of(record) + query))
        found = re.findall(r'<a href="(\?[^"]*)">([^<]+)</a>', page)
        return {label: unescape(url) for url, label in found}

    @pytest.fixture
    def runs(self) -> dict[str, Any]:
        runs = {name: make_run("running", title=name) for name in ("stopping", "killed")}
        return runs | {"waiting": make_run(title="waiting"), "done": make_run("completed")}

    def test_filters(self, chief: Client, runs: dict[str, Any]) -> None:
        record = cancelled(*runs.values())
        record_stopped([runs["killed"].run_id], "killed")
        links = self.links(chief, record)

        def found(label: str, query: str = "") -> set[str]:
            by_id = {run.run_id: name for name, run in runs.items()}
            url = self.links(chief, record, query)[label]
            return {by_id[run_id] for run_id in self.runs_of(chief, record, url)}

        assert found("cancelled") == {"stopping", "killed", "waiting"}
        assert found("already finished") == {"done"}
        assert found("cancelled, stopping") == {"stopping"}
        assert found("cancelled, stopped (killed)") == {"killed"}
        both = self.links(chief, record, links["cancelled"])["cancelled, stopping"]
        assert self.runs_of(chief, record, both) == {runs["stopping"].run_id}
        assert "stopping" in summary(chief, record, links["cancelled, stopping"])
        page = text(chief.get(url_of(record) + both))
        assert f"/summary/?{links['cancelled'][1:]}" in unescape(page)
        assert "None." in summary(chief, record, links["not found"])

    @pytest.mark.parametrize("query", ["outcome=x", "stop_state=x", "after=x", "after=9" * 30])
    def test_nonsense_is_ignored(self, chief: Client, query: str) -> None:
        record = cancelled(make_run())
        for value in (query, f"after={10**30}", "after=²", "after=-1", "after=%00"):
            assert len(self.runs_of(chief, record, f"?{value}")) == 1

    def test_pages_of_a_filter(self, chief: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(items, "SHOWN_ITEMS", 2)
        monkeypatch.setattr(items, "SEARCHED_ITEMS", 4)
        runs = [*make_runs(8), *make_runs(3, "running")]
        record = cancelled(*runs)
        query = "?stop_state=stopping"
        assert "None among the next 4." in summary(chief, record, query)
        seen: set[str] = set()
        pages = 0
        while query:
            seen |= self.runs_of(chief, record, query)
            query = self.links(chief, record, query).get("Next page", "")
            pages += 1
        assert seen == set(ids(runs[8:]))
        assert pages == 4

    def test_titles_only_of_runs_that_the_user_may_see(
        self, chief: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = cancelled(make_run(title="Secret"))
        assert "Secret" in words(chief.get(url_of(record)))
        names = ("view_cancellation", "view_cancellationitem")
        assert "Secret" not in words(logged_in("auditor", *names).get(url_of(record)))
        page: Any = admin.site.get_model_admin(get_run_model())
        rows = page.get_queryset
        monkeypatch.setattr(page, "get_queryset", lambda request: rows(request).exclude(tenant=""))
        assert "Secret" not in words(chief.get(url_of(record)))

    def test_needs_a_permission_of_its_own(self, reader: Client) -> None:
        run = make_run()
        assert run.run_id not in words(reader.get(url_of(cancelled(run))))

    def test_says_why_an_executor_was_not_told(self, chief: Client) -> None:
        record = cancelled(make_run("running"))
        CancellationItem.objects.update(delivery="failed", last_error="broker is <away>")
        assert "failed: broker is <away>" in summary(chief, record)

    def test_statements(self, chief: Client, django_assert_max_num_queries: Any) -> None:
        record = cancelled(*make_runs(SHOWN_ITEMS * 2))
        with django_assert_max_num_queries(26):
            chief.get(url_of(record, "summary"))


class TestAbort:
    def test_asks_then_aborts(self, chief: Client) -> None:
        runs = make_runs(30)
        record = started()
        advance_chunk(record.pk)
        assert f'href="{url_of(record, "abort")}"' in text(chief.get(url_of(record)))
        page = words(chief.get(url_of(record, "abort")))
        assert "Abort this cancellation?" in page
        assert "20 runs that are not cancelled yet will go on." in page
        assert "Yes, abort" in page
        answer = chief.post(url_of(record, "abort"))
        assert answer["Location"] == url_of(record)
        assert said(answer) == ["The cancellation has been aborted. What is cancelled stays so."]
        advance_bulk_cancellations(10)
        assert statuses(*runs).count("cancelled") == 10

        page = words(chief.get(url_of(record, "abort")))
        assert "There is nothing left to abort." in page
        assert "Yes, abort" not in page
        again = chief.post(url_of(record, "abort"))
        assert said(again)[-1] == "There was nothing left to abort."
        assert url_of(record, "abort") not in text(chief.get(url_of(record)))

    def test_not_by_who_may_only_look(self, reader: Client) -> None:
        make_run()
        record = started()
        assert url_of(record, "abort") not in text(reader.get(url_of(record)))
        for page in ("abort", "retry"):
            assert reader.get(url_of(record, page)).status_code == 403
            assert reader.post(url_of(record, page)).status_code == 403
        assert CancellationChunk.objects.get().state == "pending"

    @pytest.mark.parametrize("key", ["999999", "x", "9" * 40, "%00"])
    @pytest.mark.parametrize("page", ["abort", "retry"])
    def test_of_no_cancellation(self, chief: Client, page: str, key: str) -> None:
        assert chief.get(f"{RECORDS}{key}/{page}/").status_code == 302
        assert chief.post(f"{RECORDS}{key}/{page}/").status_code == 302


class TestRetry:
    def test_asks_then_tries_again(self, chief: Client) -> None:
        run = make_run("running")
        record = started()
        CancellationChunk.objects.update(state=ChunkState.FAILED)
        set_record(record, state="failed")
        CancellationItem.objects.create(
            cancellation=record, run_id="x", outcome="cancelled", via="requested",
            delivery="failed", handling="failed",
        )  # fmt: skip
        assert f'href="{url_of(record, "retry")}"' in text(chief.get(url_of(record)))
        page = words(chief.get(url_of(record, "retry")))
        assert "1 run could not be written." in page
        assert "1 executor could not be told that its run is cancelled." in page
        assert "1 handler has failed." in page
        assert "Yes, try again" in page
        answer = chief.post(url_of(record, "retry"))
        assert answer["Location"] == url_of(record)
        assert said(answer) == ["3 of these are tried again."]
        advance_bulk_cancellations(10)
        assert statuses(run) == ["cancelled"]

        page = words(chief.get(url_of(record, "retry")))
        assert "Nothing has failed." in page
        assert "Yes, try again" not in page
        assert said(chief.post(url_of(record, "retry")))[-1] == "Nothing has failed."
