"""Bulk cancellations in a real browser, and the page of a cancellation."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from django_run_cancel.cancellation import (
    cancel_runs,
    record_stopped,
    start_bulk_cancellation,
)
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.cancellation.chunks import advance_chunk
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from tests.admin.helpers import LIST, RECORDS
from tests.browser.conftest import Visit
from tests.browser.pages import messages, run_action, yes
from tests.helpers import make_run, make_runs, statuses

pytestmark = pytest.mark.django_db(transaction=True)


def select_all(page: Page, count: int) -> None:
    """Select all runs, also those on other pages."""
    page.goto(LIST)
    page.locator("#action-toggle").check()
    question = page.locator(".actions .question a")
    expect(question).to_contain_text(f"Select all {count:,} runs")
    question.click()


def test_across_pages(chief: Page) -> None:
    """More runs than one request takes."""
    runs = make_runs(MAX_RUN_IDS + 1, title="Import")
    select_all(chief, MAX_RUN_IDS + 1)
    run_action(chief)
    expect(chief.locator(".run-cancel")).to_contain_text("1,001 runs will be cancelled")
    expect(chief.locator(".run-cancel-sample tbody tr")).to_have_count(20)
    everything = chief.get_by_label("Yes, all active runs: no filter is set")
    yes(chief, "Wrong year")  # the browser asks for the tick
    expect(everything).to_be_focused()
    everything.check()
    yes(chief, "Wrong year")
    assert messages(chief) == ["1,001 runs are being cancelled by the delivery worker."]

    summary = chief.locator("#run-cancel-summary")
    expect(summary.get_by_role("status")).to_have_text("waiting for the delivery worker")
    bar = summary.get_by_role("progressbar", name="Progress")
    expect(bar).to_have_attribute("value", "0")
    advance_chunk(Cancellation.objects.get().pk)
    expect(summary.get_by_role("status")).to_have_text("runs are being cancelled")
    expect(summary).to_contain_text("a second, about")
    expect(bar).not_to_have_attribute("value", "0")
    expect(chief.locator(".run-cancel-items tbody tr").first).to_contain_text("Import")
    chief.get_by_role("link", name="Abort…").click()
    chief.get_by_role("link", name="No, take me back").click()
    chief.get_by_role("link", name="Abort…").click()
    chief.get_by_role("button", name="Yes, abort").click()
    expect(summary.get_by_role("status")).to_have_text("aborted: not all runs were cancelled")
    expect(summary).not_to_have_attribute("data-seconds", re.compile(".*"))
    assert set(statuses(*runs)) == {"cancelled", "queued"}


class TestPageOfACancellation:
    def test_is_told_at_the_top(self, visit: Visit) -> None:
        window = {"width": 1280, "height": 800}
        page = visit("chief", is_superuser=True, viewport=window)
        make_runs(30, "running", title="Import")
        runs = get_run_model()._base_manager.all()
        record = start_bulk_cancellation(
            runs, requested_by="night watch", reason="Disk full", selection={"filter": {"q": "x"}}
        ).cancellation
        advance_chunk(record.pk)
        CancellationItem.objects.update(delivery="failed")
        make_runs(1)
        CancellationChunk.objects.create(
            cancellation=record, kind="requested", run_ids=["x"], size=1
        )
        page.goto(f"{RECORDS}{record.pk}/change/")
        for told in ("Asked for by night watch (Python): Disk full", "asked for", "failed deliver"):
            expect(page.get_by_text(told).first).to_be_in_viewport(ratio=1)
        for part in (
            page.get_by_role("progressbar"),
            page.get_by_role("link", name="Abort…"),
            page.get_by_role("link", name="Try again what has failed…"),
        ):
            expect(part).to_be_in_viewport(ratio=1)

    def test_without_scripts(self, visit: Visit) -> None:
        page = visit("chief", is_superuser=True, java_script_enabled=False)
        run = make_run("running")
        record = cancel_runs([run.run_id], requested_by="x").cancellation
        assert record is not None
        page.goto(f"{RECORDS}{record.pk}/change/")
        expect(page.get_by_text("Reload the page to see what has changed.")).to_be_visible()
        record_stopped([run.run_id], "acknowledged")
        page.reload()
        expect(page.get_by_role("status")).to_have_text("cancelled, no run is stopping")
