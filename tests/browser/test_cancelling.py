"""Operators at work, in a real browser."""

from __future__ import annotations

import django
import pytest
from playwright.sync_api import Page, expect

from django_run_cancel.models import Cancellation, get_run_model
from django_run_cancel.services import MAX_RUN_IDS, cancel_runs
from tests.admin.helpers import CANCEL, LIST, page_of
from tests.browser.conftest import Visit
from tests.browser.pages import OPERATOR, button, run_action, tick, yes
from tests.helpers import make_run, make_runs, statuses

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def operator(visit: Visit) -> Page:
    return visit("operator", *OPERATOR)


def messages(page: Page) -> list[str]:
    """Return what the page says happened."""
    expect(page.locator("ul.messagelist")).to_be_visible()
    return [text.strip() for text in page.locator("ul.messagelist li").all_inner_texts()]


def select_all(page: Page, count: int) -> None:
    """Select all runs, also those on other pages."""
    page.goto(LIST)
    page.locator("#action-toggle").check()
    question = page.locator(".actions .question a")
    expect(question).to_contain_text(f"Select all {count}")
    question.click()


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
        "2 runs have been cancelled. What happened to each",
        "1 run below has been cancelled with it.",
        "1 of these had started: cancelled, stopping.",
        "1 run had finished and stays as it is.",
    ]
    expect(chief.locator("tr", has_text=parent.run_id)).to_contain_text("cancelled, stopping")

    chief.get_by_role("link", name="What happened to each").click()
    content = chief.locator("#content")
    for text in ("Wrong <catalogue>", "chief", "127.0.0.1"):
        expect(content).to_contain_text(text)
    for run, outcome in ((queued, "never started"), (child, "cascade"), (finished, "completed")):
        expect(chief.locator("tr.form-row", has_text=run.run_id)).to_contain_text(outcome)
    chief.get_by_role("link", name="in a list of their own").click()
    expect(chief.locator("#result_list tbody tr")).to_have_count(4)
    assert statuses(parent, queued, child, finished) == ["cancelled"] * 3 + ["completed"]


def test_across_pages(chief: Page) -> None:
    runs = make_runs(250)
    select_all(chief, 250)
    run_action(chief)
    expect(chief.locator(".run-cancel")).to_contain_text("and 230 more")
    yes(chief)
    assert messages(chief) == ["250 runs have been cancelled. What happened to each"]
    assert set(statuses(*runs)) == {"cancelled"}


def test_more_than_one_request_takes(chief: Page) -> None:
    make_runs(MAX_RUN_IDS + 1)
    select_all(chief, MAX_RUN_IDS + 1)
    run_action(chief)
    (message,) = messages(chief)
    assert "More than 1000 runs are selected, and nothing has been cancelled." in message
    assert "manage.py cancel_runs" in message
    assert not Cancellation.objects.exists()


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
        expect(looker.get_by_role("link", name=run.run_id)).to_be_visible()
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
        expect(chief.locator("#content")).to_contain_text(
            "Cancelled, stopping. By chief: Disk full"
        )
        expect(button(chief)).to_have_count(0)

    @pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.1 has actions there")
    def test_action(self, operator: Page) -> None:
        run = make_run("running")
        operator.goto(page_of(run))
        operator.locator("select[name='CHANGE_FORM-action']").select_option("cancel_selected")
        operator.locator("button[name=index]").click()
        expect(operator.locator(".run-cancel")).to_contain_text("1 run will be cancelled")
        yes(operator)
        assert messages(operator)[0] == "1 run has been cancelled."
        assert operator.url.endswith(page_of(run))
        assert statuses(run) == ["cancelled"]


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


def test_fits_on_a_phone(visit: Visit) -> None:
    phone = visit("phone", *OPERATOR, viewport={"width": 390, "height": 800}, has_touch=True)
    run = make_run(title="Import of a long list of things")
    phone.goto(f"{CANCEL}?run_id={run.run_id}")
    assert phone.evaluate("() => document.documentElement.scrollWidth") == 390
    yes(phone)
    assert messages(phone) == ["1 run has been cancelled."]
