"""API keys, made and revoked in a real browser."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.admin.helpers import KEYS
from tests.browser.pages import run_action
from tests.helpers import make_run, statuses

pytestmark = pytest.mark.django_db(transaction=True)


def test_shown_once_works_and_is_revoked(chief: Page, live_server: object) -> None:
    chief.goto(f"{KEYS}add/")
    chief.get_by_label("Name").fill("CI")
    chief.get_by_role("button", name="Save", exact=True).click()
    field = chief.get_by_label("API key", exact=True)
    expect(field).to_be_focused()
    key = field.input_value()
    assert key.startswith("rc_")

    run = make_run()
    url = f"{live_server}/v1/runs/cancel"

    def cancel() -> int:
        body = {"run_ids": [run.run_id]}
        return httpx.post(url, json=body, headers={"x-api-key": key}, trust_env=False).status_code

    assert cancel() == 200
    assert statuses(run) == ["cancelled"]

    chief.get_by_role("link", name="I have copied it").click()
    expect(chief.get_by_role("link", name="CI")).to_be_visible()
    assert key not in chief.content()
    chief.get_by_role("link", name="CI").click()
    expect(chief.get_by_label("Name")).to_have_value("CI")
    assert key not in chief.content()

    chief.goto(KEYS)
    chief.locator("input.action-select").check()
    run_action(chief, "revoke")
    chief.get_by_role("link", name="No, take me back").click()
    assert cancel() == 200
    chief.locator("input.action-select").check()
    run_action(chief, "revoke")
    chief.get_by_role("button", name="Yes, revoke").click()
    expect(chief.locator("ul.messagelist")).to_contain_text("1 key no longer works.")
    assert cancel() == 403
