"""Operators at work, in a real browser."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from django_run_cancel.cancellation import (
    cancel_runs,
    record_stopped,
)
from django_run_cancel.models import (
    Cancellation,
    CancellationItem,
    get_run_model,
)
from tests.admin.helpers import CANCEL, LIST, page_of
from tests.browser.conftest import Visit
from tests.browser.pages import OPERATOR, button, messages, run_action, tick, yes
from tests.helpers import make_run, make_runs, statuses

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def operator(visit: Visit) -> Page:
    return visit("operator", *OPERATOR)


def test_from_the_list_to_the_record(chief: Page) -> None:
    parent, queued = make_run("running", title="Crawl"), make_run()
    child, finished = parent.create_child(), make_run("completed")
    chief.goto(f"{LIST}?status=active")
    expect(chief.locator(f"input.action-select[value='{finished.pk}']")).to_have_count(0)
    tick(chief, [parent, queued, finished])
    run_action(chief)

    expect(chief.get_by_role("listitem").filter(has_text="has finished")).to_be_visible()
    expect(chief.locator("tr", has_text=parent.run_id)).to_contain_text("Crawl")
    expect(chief.locator("tr", has_text=finished.run_id)).to_contain_text("nothing")
    expect(chief.get_by_label("Reason")).to_be_focused()
    yes(chief, "Wrong <catalogue>")
    assert messages(chief) == [
        "2 runs have been cancelled.",
        "1 run below has been cancelled with it.",
        "1 was running and is now stopping.",
        "1 run had finished and stays as it is.",
    ]
    # On the page of the cancellation.
    expect(chief.get_by_role("status")).to_have_text("cancelled, some runs are stopping")
    content = chief.locator("#content")
    for text in ("Wrong <catalogue>", "chief", "127.0.0.1"):
        expect(content).to_contain_text(text)
    for run, outcome in ((queued, "never started"), (child, "cascade"), (finished, "completed")):
        expect(chief.locator("tr", has_text=run.run_id)).to_contain_text(outcome)
    chief.get_by_role("link", name="cancelled, stopping", exact=True).click()
    expect(chief.locator(".run-cancel-items tbody tr")).to_have_count(1)
    expect(chief.locator("tr", has_text=parent.run_id)).to_contain_text("Crawl")
    chief.get_by_role("link", name="in a list of their own").click()
    expect(chief.locator("#result_list tbody tr")).to_have_count(4)
    assert statuses(parent, queued, child, finished) == ["cancelled"] * 3 + ["completed"]


def test_page_that_asks__opens_at_its_summary(visit: Visit) -> None:
    page = visit("operator", *OPERATOR, viewport={"width": 1280, "height": 800})
    run = make_run("running", title="Crawl")
    for number in range(25):
        run.create_child(title=f"Page {number}")
    page.goto(f"{CANCEL}?run_id={run.run_id}")
    expect(page.get_by_role("heading", name="Cancel “Crawl”?")).to_be_in_viewport(ratio=1)
    for seen in (run.run_id, "1 run will be cancelled", "Page 0"):
        expect(page.get_by_text(seen, exact=False).first).to_be_in_viewport(ratio=1)
    expect(page.locator(".run-cancel-sample tbody tr")).to_have_count(20)
    expect(page.locator(".run-cancel-sample")).to_contain_text("and 5 more")
    page.locator(".breadcrumbs").get_by_role("link", name="Runs").click()
    expect(page.locator("#result_list")).to_be_visible()


class TestWho:
    def test_who_may_not_read_the_record_gets_no_link_to_it(self, operator: Page) -> None:
        (run,) = make_runs(1)
        tick(operator, [run])
        run_action(operator)
        yes(operator)
        assert messages(operator) == ["1 run has been cancelled."]
        assert statuses(run) == ["cancelled"]
        for url in (LIST, page_of(run)):
            operator.goto(url)
            expect(operator.locator("#content")).to_contain_text("operator")
            links = operator.locator("a[href*='/django_run_cancel/cancellation']")
            expect(links).to_have_count(0)

    def test_who_may_only_look_finds_no_way_to_cancel(self, visit: Visit) -> None:
        (run,) = make_runs(1)
        looker = visit("looker", *(name for name in OPERATOR if name != "cancel_run"))
        looker.goto(LIST)
        expect(looker.locator(f"a[href='{page_of(run)}']")).to_be_visible()
        expect(looker.locator("[value=cancel_selected]")).to_have_count(0)
        looker.goto(page_of(run))
        expect(looker.get_by_text(run.run_id).first).to_be_visible()
        expect(button(looker)).to_have_count(0)
        expect(looker.locator("[value=cancel_selected]")).to_have_count(0)

        # With the cookies of the window.
        assert looker.request.get(f"{CANCEL}?run_id={run.run_id}").status == 403
        origin = looker.evaluate("() => location.origin")
        looker.context.add_cookies([{"name": "csrftoken", "value": "a" * 32, "url": origin}])
        form = {"csrfmiddlewaretoken": "a" * 32, "run_ids": run.run_id, "token": "t"}
        refused = looker.request.post(CANCEL, form=form)
        assert refused.status == 403
        assert "CSRF" not in refused.text()
        assert statuses(run) == ["queued"]


class TestPageOfARun:
    def test_button(self, chief: Page) -> None:
        run = make_run("running", title="Crawl")
        chief.goto(page_of(run))
        button(chief).click()
        yes(chief, "Disk full")
        assert messages(chief)[0] == "1 run has been cancelled. What happened to each"
        expect(chief.get_by_role("status")).to_have_text("cancelled, stopping")
        expect(chief.locator("#content")).to_contain_text("Cancelled by chief: Disk full")
        expect(button(chief)).to_have_count(0)

    def test_keeps_itself_up_to_date(self, chief: Page) -> None:
        run = make_run("running", title="Crawl")
        child = run.create_child(title="Page 1")
        chief.goto(page_of(run))
        summary = chief.locator("#run-cancel-summary")
        expect(summary).to_contain_text("1 run directly below: 1 active")
        button(chief).focus()

        child.mark_running()
        expect(summary.locator("table .run-cancel-state")).to_have_text("running")
        expect(button(chief)).to_be_focused()
        cancel_runs([run.run_id], requested_by="night watch", reason="Disk full")
        expect(summary.get_by_role("status")).to_have_text("cancelled, stopping")
        expect(summary).to_contain_text("Cancelled by night watch: Disk full")
        expect(button(chief)).to_have_count(0)
        record_stopped([run.run_id], "acknowledged")
        expect(summary.get_by_role("status")).to_have_text("cancelled, stopped (acknowledged)")
        expect(summary).not_to_have_attribute("data-seconds", re.compile(".*"))

    def test_says_when_it_could_not_be_brought_up_to_date(self, operator: Page) -> None:
        operator.goto(page_of(make_run("running")))
        outdated = operator.get_by_text("could not be brought up to date")
        expect(outdated).to_be_hidden()
        cookies = operator.context.cookies()
        operator.context.clear_cookies()  # logged out
        expect(outdated).to_be_visible()
        operator.context.add_cookies(cookies)  # type: ignore[arg-type]  # what it has returned
        expect(outdated).to_be_hidden()

    def test_without_scripts(self, visit: Visit) -> None:
        page = visit("operator", *OPERATOR, java_script_enabled=False)
        run = make_run("running")
        page.goto(page_of(run))
        expect(page.get_by_text("Reload the page to see what has changed.")).to_be_visible()
        run.mark_completed()
        page.reload()
        expect(page.get_by_role("status")).to_have_text("completed")
        expect(button(page)).to_have_count(0)

    def test_is_told_at_the_top(self, visit: Visit) -> None:
        page = visit("operator", *OPERATOR, viewport={"width": 1280, "height": 800})
        run = make_run("running", parent=make_run("running", title="Crawl"))
        cancel_runs([run.run_id], requested_by="night watch", reason="Disk full")
        CancellationItem.objects.update(escalates_at=timezone.now() + timedelta(seconds=20))
        page.goto(page_of(run))
        for told in (
            "Part of:",
            "cancelled, stopping",
            "Cancelled by",
            "Will be killed at",
            "Presumed",
        ):
            expect(page.get_by_text(told).first).to_be_in_viewport(ratio=1)


def test_keyboard_only(operator: Page) -> None:
    run, other = make_runs(2)
    operator.goto(LIST)

    def tab_to(selector: str) -> None:
        for _ in range(80):
            operator.keyboard.press("Tab")
            if operator.evaluate("s => document.activeElement.matches(s)", selector):
                return
        pytest.fail(f"Tab does not lead to {selector}")

    tab_to("select[name=action]")
    operator.keyboard.type("Cancel selected")
    tab_to(f"input.action-select[value='{run.pk}']")
    operator.keyboard.press("Space")
    for _ in range(80):  # back, as one goes with Shift+Tab
        operator.keyboard.press("Shift+Tab")
        if operator.evaluate("() => document.activeElement.name === 'index'"):
            break
    operator.keyboard.press("Enter")

    # The reason has the focus already.
    expect(operator.get_by_label("Reason")).to_be_focused()
    operator.keyboard.type("Typed")
    operator.keyboard.press("Tab")
    focused = operator.locator(":focus")
    expect(focused).to_have_text("Yes, cancel 1 run")
    assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    operator.keyboard.press("Enter")
    assert messages(operator) == ["1 run has been cancelled."]
    assert Cancellation.objects.get().reason == "Typed"
    assert statuses(run, other) == ["cancelled", "queued"]


def test_double_click(operator: Page) -> None:
    runs = make_runs(2)
    tick(operator, runs)
    run_action(operator)
    operator.get_by_role("button", name="Yes, cancel").dblclick()
    assert messages(operator)[-1] == "2 runs have been cancelled."
    assert Cancellation.objects.count() == 1


def test_going_back_does_not_ask_again(operator: Page) -> None:
    (run,) = make_runs(1)
    operator.goto(page_of(run))
    button(operator).click()
    yes(operator)
    assert messages(operator) == ["1 run has been cancelled."]
    operator.go_back()
    # Pages of the admin are not kept, so this one has looked again.
    expect(operator.locator(".run-cancel")).to_contain_text("There is nothing left to cancel.")
    expect(operator.get_by_role("button", name="Yes, cancel")).to_have_count(0)
    assert Cancellation.objects.count() == 1


def test_nothing_runs_that_is_in_the_data(chief: Page) -> None:
    attack = "<img src=x onerror=\"throw Error('ran')\">"
    run = make_run("running", title=attack, tenant=attack[:20])
    cancel_runs([run.run_id], requested_by=attack, reason=attack)
    record = Cancellation.objects.get()
    late = get_run_model()._default_manager.create(title=attack)
    for url in (
        LIST,
        page_of(run),
        f"{CANCEL}?run_id={late.run_id}",
        f"/admin/django_run_cancel/cancellation/{record.pk}/change/",
    ):
        chief.goto(url)
        expect(chief.locator("#content")).to_contain_text("onerror")
