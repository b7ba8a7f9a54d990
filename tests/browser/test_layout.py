"""What one sees of the pages without scrolling sideways: at 1280 px, and on a phone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from django_run_cancel.cancellation import cancel_runs, start_bulk_cancellation
from django_run_cancel.models import ApiKey, Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import StopState
from tests.admin.helpers import CANCEL, KEYS, LIST, RECORDS, page_of
from tests.browser.conftest import Visit
from tests.browser.pages import OPERATOR, messages, yes
from tests.helpers import ids, make_run, make_runs

pytestmark = pytest.mark.django_db(transaction=True)

ITEMS = "/admin/django_run_cancel/cancellationitem/"
REASON = "The ledger of last year is locked by the auditors until Monday, see ticket 4711."
ERROR = "OperationalError: [Errno 111] Connection refused: redis://queue.internal.example:6379/0"


def make_incident() -> Cancellation:
    """Cancel runs with long titles. Executors could not be told, and every state is there."""
    runs = make_runs(
        4, "running", title="Nightly import of the catalogue of the Harbour library", tenant="acme"
    )
    record = cancel_runs(
        [*ids(runs), "unknown"],
        requested_by="night.watch@harbour-library.example",
        reason=REASON,
    ).cancellation
    assert record is not None
    for run, state in zip(runs, StopState, strict=False):
        get_run_model()._base_manager.filter(pk=run.pk).update(stop_state=state)
    CancellationItem.objects.exclude(previous_status="").update(delivery="failed", last_error=ERROR)
    make_runs(3, run_type="resize")
    bulk = get_run_model()._base_manager.filter(run_type="resize")
    start_bulk_cancellation(bulk, requested_by="operator", reason=REASON)
    ApiKey.issue("The old dashboard of the night watch", tenant="harbour-library", read_only=True)
    return record


def widths(page: Page, selector: str) -> list[int]:
    found: list[int] = page.locator(selector).evaluate("e => [e.scrollWidth, e.clientWidth]")
    return found


def page_width(page: Page) -> int:
    found: int = page.evaluate("() => document.documentElement.scrollWidth")
    return found


@pytest.mark.parametrize("url", [LIST, RECORDS, ITEMS, KEYS])
def test_lists__nothing_is_cut(visit: Visit, url: str) -> None:
    page = visit("chief", is_superuser=True, viewport={"width": 1280, "height": 800})
    make_incident()
    page.goto(url)
    expect(page.locator("#nav-sidebar")).to_be_visible()
    width, seen = widths(page, ".results")
    assert width == seen


def test_ids_are_short_and_copied_as_a_whole(visit: Visit) -> None:
    page = visit("operator", *OPERATOR, viewport={"width": 1280, "height": 800})
    runs = make_runs(2, title="Import")  # without a title, the id is the link
    page.goto(LIST)
    code = page.locator("code.run-cancel-id").first
    expect(code).to_have_attribute("title", code.inner_text())
    code.click()
    assert page.evaluate("() => getSelection().toString()") in ids(runs)


def test_page_of_a_cancellation__nothing_is_cut(visit: Visit) -> None:
    page = visit("chief", is_superuser=True, viewport={"width": 1280, "height": 800})
    page.goto(f"{RECORDS}{make_incident().pk}/change/")
    width, seen = widths(page, ".run-cancel-items")
    assert width == seen
    expect(page.get_by_text(f"failed: {ERROR}").first).to_be_in_viewport(ratio=1)


def test_fits_on_a_phone(visit: Visit) -> None:
    phone = visit("phone", *OPERATOR, viewport={"width": 390, "height": 800}, has_touch=True)
    run = make_run(title="Import of a long list of things")
    run.create_child(title="A-part-of-it-with-a-name-that-cannot-be-broken-anywhere")
    phone.goto(f"{CANCEL}?run_id={run.run_id}")
    assert page_width(phone) == 390
    yes(phone)
    assert messages(phone)[0] == "1 run has been cancelled."
    record = make_incident()
    chief = visit("chief", is_superuser=True, viewport={"width": 390, "height": 800})
    make_run()
    pages = [f"{RECORDS}{record.pk}/{page}/" for page in ("change", "abort", "retry")]
    for url in (*pages, f"{LIST}cancel-all/", RECORDS, ITEMS, KEYS):
        chief.goto(url)
        assert page_width(chief) == 390, url
    for url in (LIST, page_of(run)):
        phone.goto(url)
        assert page_width(phone) == 390, url


def test_heading_of_a_cancellation__is_whole_on_a_phone(visit: Visit) -> None:
    record = make_incident()
    phone = visit("chief", is_superuser=True, viewport={"width": 390, "height": 800})
    phone.goto(f"{RECORDS}{record.pk}/change/")
    heading = phone.get_by_role("heading", name=record.cancellation_id)
    expect(heading).to_be_visible()
    box = heading.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    width, seen = heading.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert width == seen
