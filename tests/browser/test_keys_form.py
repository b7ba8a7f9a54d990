"""The form of API keys and the page that shows a new one: explained, copied, and on a phone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.admin.helpers import KEYS
from tests.browser.conftest import Visit

pytestmark = pytest.mark.django_db(transaction=True)


def create(page: Page, tenant: str = "") -> None:
    page.goto(f"{KEYS}add/")
    page.get_by_label("Name").fill("CI")
    page.get_by_label("Tenant").fill(tenant)
    page.get_by_role("button", name="Save", exact=True).click()


def test_copy(visit: Visit) -> None:
    page = visit("chief", is_superuser=True, permissions=["clipboard-read", "clipboard-write"])
    create(page)
    field = page.get_by_label("API key", exact=True)
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("Copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == field.input_value()


@pytest.mark.parametrize(("works", "told"), [(True, "Copied."), (False, "copy it yourself")])
def test_copy__without_a_clipboard(chief: Page, works: bool, told: str) -> None:
    """On hosts without HTTPS, browsers have the older command only."""
    create(chief)
    chief.evaluate(
        "works => { Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        " document.execCommand = () => works; }",
        works,
    )
    chief.get_by_role("button", name="Copy", exact=True).click()
    expect(chief.get_by_role("status")).to_contain_text(told)
    selected = chief.evaluate("() => getSelection().toString()")
    assert selected == chief.get_by_label("API key", exact=True).input_value()


def test_without_scripts(visit: Visit) -> None:
    page = visit("chief", is_superuser=True, java_script_enabled=False)
    create(page)
    expect(page.get_by_label("API key", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Copy", exact=True)).to_be_hidden()


def test_fits_on_a_phone(visit: Visit) -> None:
    phone = visit("phone", is_superuser=True, viewport={"width": 390, "height": 800})
    phone.goto(f"{KEYS}add/")
    assert phone.evaluate("() => document.documentElement.scrollWidth") == 390
    create(phone, "acme")
    expect(phone.get_by_role("button", name="Copy", exact=True)).to_be_in_viewport(ratio=1)
    assert phone.evaluate("() => document.documentElement.scrollWidth") == 390
    phone.goto(KEYS)
    assert phone.evaluate("() => document.documentElement.scrollWidth") == 390
