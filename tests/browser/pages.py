"""What one does on the pages of the admin, in the words of the tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.admin.helpers import LIST, RUN

OPERATOR = ("view_run", "cancel_run", f"view_{RUN.model_name}")
"""The permissions to look at runs and cancel them, whatever the run model."""


def tick(page: Page, runs: Iterable[Any]) -> None:
    """Open the list and tick rows."""
    page.goto(LIST)
    for run in runs:
        page.locator(f"input.action-select[value='{run.pk}']").check()


def run_action(page: Page, action: str = "cancel_selected") -> None:
    """Run an action on what is ticked."""
    page.locator("select[name=action]").select_option(action)
    page.locator("button[name=index]").click()


def yes(page: Page, reason: str = "") -> None:
    """Confirm on the page that asks."""
    page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name="Yes, cancel").click()


def button(page: Page) -> Locator:
    """Return the button on the page of a run."""
    return page.get_by_role("link", name="Cancel this run…")


def messages(page: Page) -> list[str]:
    """Return what the page says happened."""
    expect(page.locator("ul.messagelist")).to_be_visible()
    return [text.strip() for text in page.locator("ul.messagelist li").all_inner_texts()]
