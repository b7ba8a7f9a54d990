"""Automated checks of the pages with axe-core: WCAG 2.1, levels A and AA, light and dark."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from django_run_cancel.cancellation import cancel_runs, start_bulk_cancellation
from django_run_cancel.models import Cancellation, get_run_model
from tests.admin.helpers import CANCEL, KEYS, LIST, RECORDS, page_of
from tests.browser.conftest import Visit
from tests.browser.helpers import require_axe
from tests.browser.pages import run_action, tick, yes
from tests.helpers import make_run

pytestmark = pytest.mark.django_db(transaction=True)

# What Django's own templates do on every page, and no page of ours: the rule, and where.
OF_DJANGO = {
    "link-in-text-block": ".breadcrumbs",  # links that only their colour tells from the ">" around
    "label": ".datetime",  # one label for two fields, of date and time
}
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


def violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong, in words."""
    page.evaluate(require_axe())
    found: list[str] = page.evaluate(
        """
        async ([tags, ofDjango]) => {
          const {violations, passes} = await axe.run(document, {runOnly: tags});
          if (!passes.length) return ["nothing was checked"];
          return violations.flatMap(({id, help, nodes}) => nodes
            .filter(({target: [place]}) =>
              !(id in ofDjango && document.querySelector(place).closest(ofDjango[id])))
            .map(({html}) => `${location.pathname}: ${id} (${help}) ${html}`));
        }
        """,
        [TAGS, OF_DJANGO],
    )
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages(visit: Visit, scheme: str) -> None:
    require_axe()
    # axe-core styles inline while it measures.
    page = visit("chief", is_superuser=True, color_scheme=scheme, bypass_csp=True)
    parent, finished = make_run("running", title="Crawl", tenant="acme"), make_run("completed")
    parent.create_child()
    stopping, active = make_run("running"), make_run("running", title="Import")
    cancel_runs([stopping.run_id], requested_by="night watch", reason="Disk full")

    tick(page, [parent, finished, stopping])
    found = violations(page)
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    run_action(page)
    expect(page.locator(".run-cancel")).to_contain_text("1 run will be cancelled")
    found += violations(page)
    yes(page, "The catalogue is wrong.")
    expect(page.locator("ul.messagelist")).to_be_visible()
    found += violations(page)  # with messages
    record = Cancellation.objects.latest("pk")
    runs = get_run_model()._base_manager.all()
    bulk = start_bulk_cancellation(runs, requested_by="x", selection={}).cancellation
    for url in (
        page_of(active),
        page_of(stopping),
        f"{CANCEL}?run_id=unknown",
        f"{RECORDS}{record.pk}/change/",
        f"{RECORDS}{record.pk}/retry/",
        f"{RECORDS}{bulk.pk}/change/",
        f"{RECORDS}{bulk.pk}/abort/",
        f"{LIST}cancel-all/",
        RECORDS,
        f"{KEYS}add/",
    ):
        page.goto(url)
        found += violations(page)
    page.get_by_label("Name").fill("CI")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_label("API key", exact=True)).to_be_visible()
    found += violations(page)
    assert found == [], "\n".join(found)
