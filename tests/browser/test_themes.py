"""Cancelling in a browser: in Django's own admin, and in each theme with settings of its own.

``DJANGO_SETTINGS_MODULE=tests.settings_unfold pytest tests/browser/test_themes.py``
"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from django_run_cancel.cancellation import advance_bulk_cancellations, cancel_runs
from django_run_cancel.models import Cancellation
from tests.admin.helpers import KEYS, LIST, RECORDS, page_of
from tests.browser.conftest import Visit
from tests.browser.pages import button, run_action, tick, yes
from tests.helpers import make_run, make_runs, statuses

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # django-unfold, on Django 6.1
    pytest.mark.filterwarnings("ignore:Overriding get_action_choices"),
]


def is_seen(page: Page, text: str) -> None:
    expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()


def test_tick_ask_cancel_tell_record(chief: Page) -> None:
    run, *others = make_runs(3, title="Import")
    child = run.create_child()
    tick(chief, [run, others[0]])
    run_action(chief)
    expect(chief.get_by_role("heading", name="Cancel these runs?")).to_be_visible()
    is_seen(chief, "2 runs will be cancelled")
    assert statuses(run) == ["queued"]

    yes(chief, "The catalogue is wrong.")
    is_seen(chief, "2 runs have been cancelled.")
    is_seen(chief, "1 run below has been cancelled with it.")
    assert statuses(run, child, *others) == ["cancelled"] * 3 + ["queued"]

    # On the page of the cancellation.
    is_seen(chief, "cancelled, no run is stopping")
    is_seen(chief, "The catalogue is wrong.")
    expect(chief.locator(f"a[href$='{child.run_id}']")).to_be_visible()


def test_all_of_a_filter(chief: Page) -> None:
    runs = make_runs(3, title="Import")
    chief.goto(f"{LIST}cancel-all/?status=queued")
    expect(chief.get_by_role("heading", name="Cancel all of these runs?")).to_be_visible()
    is_seen(chief, "3 runs will be cancelled")
    yes(chief, "Wrong year")
    is_seen(chief, "waiting for the delivery worker")
    advance_bulk_cancellations(10)
    is_seen(chief, "cancelled, no run is stopping")  # without a reload
    is_seen(chief, "3 of 3 runs (100%)")
    assert set(statuses(*runs)) == {"cancelled"}


def test_abort(chief: Page) -> None:
    runs = make_runs(2)
    chief.goto(f"{LIST}cancel-all/?status=queued")
    yes(chief)
    chief.get_by_role("link", name="Abort…").click()
    is_seen(chief, "2 runs that are not cancelled yet will go on.")
    chief.get_by_role("button", name="Yes, abort").click()
    is_seen(chief, "aborted: not all runs were cancelled")
    assert set(statuses(*runs)) == {"queued"}


def test_button_on_the_page_of_a_run(chief: Page) -> None:
    run = make_run("running")
    chief.goto(page_of(run))
    expect(chief.get_by_role("status").filter(has_text="running")).to_be_visible()
    child = run.create_child(title="Page 1")
    is_seen(chief, "1 run directly below: 1 active")  # without a reload
    run_link = chief.get_by_role("link", name="Page 1")
    expect(run_link).to_have_attribute("href", page_of(child))
    button(chief).click()
    is_seen(chief, "1 run will be cancelled")
    yes(chief, "Disk full")
    is_seen(chief, "1 run has been cancelled.")
    is_seen(chief, "cancelled, stopping")
    is_seen(chief, "Cancelled by chief: Disk full")
    expect(button(chief)).to_have_count(0)
    assert statuses(run) == ["cancelled"]


def test_no(chief: Page) -> None:
    (run,) = make_runs(1)
    tick(chief, [run])
    run_action(chief)
    chief.get_by_role("link", name="No, take me back").click()
    expect(chief.locator("input.action-select")).to_have_count(1)
    assert statuses(run) == ["queued"]
    assert not Cancellation.objects.exists()


def test_new_key_is_shown(chief: Page) -> None:
    chief.goto("/admin/django_run_cancel/apikey/add/")
    chief.locator("input[name=name]").fill("CI")
    chief.locator("[name=_save]").locator("visible=true").first.click()
    expect(chief.get_by_label("API key", exact=True)).to_have_value(re.compile("^rc_"))


def test_fits_on_a_phone(visit: Visit) -> None:
    phone = visit("phone", is_superuser=True, viewport={"width": 390, "height": 844})
    run = make_run("running", title="Nightly import of the catalogue of the Harbour library")
    record = cancel_runs([run.run_id], requested_by="night watch", reason="Disk full").cancellation
    assert record is not None
    for url in (
        LIST,
        page_of(run),
        RECORDS,
        f"{RECORDS}{record.pk}/change/",
        f"{LIST}cancel-all/",
        KEYS,
        f"{KEYS}add/",
    ):
        phone.goto(url)
        assert phone.evaluate("() => document.documentElement.scrollWidth") == 390, url
