"""The operator at three in the morning: what is stuck, why, since when, and how it is ended."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.models import CancellationItem, get_run_model
from tests.admin.helpers import LIST, page_of
from tests.browser.conftest import Visit
from tests.browser.pages import messages
from tests.helpers import ids, make_runs

pytestmark = pytest.mark.django_db(transaction=True)

ERROR = "broker is away"


def test_from_the_list_to_the_end(visit: Visit) -> None:
    """Of runs that go on stopping among many others, as their executors could not be told."""
    page = visit("chief", is_superuser=True, viewport={"width": 1280, "height": 800})
    stuck = make_runs(3, "running", title="Export of the ledger")
    cancel_runs(ids(stuck), requested_by="night watch", reason="Disk full")
    rows = get_run_model()._base_manager.filter(title="Export of the ledger")
    then = timezone.now() - timedelta(minutes=34, seconds=30)
    rows.update(finished_at=then, heartbeat_at=then)
    CancellationItem.objects.update(delivery="failed", last_error=ERROR)
    make_runs(120, title="Resize images")

    # What, and since when: on the first page that one opens.
    page.goto(LIST)
    announced = page.locator("li", has_text="3 cancelled runs are still stopping")
    expect(announced).to_contain_text("the longest for 34 min")
    for told in ("3 executors could not be told", "Is the delivery worker running?"):
        expect(page.get_by_text(told)).to_be_in_viewport(ratio=1)
    announced.get_by_role("link", name="See which").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(3)
    row = page.locator("#result_list tbody tr").first
    for told in ("Export of the ledger", "cancelled, stopping", "for 34 min", "night watch"):
        expect(row).to_contain_text(told)

    # Why, and who.
    page.goto(page_of(stuck[0]))
    for told in (
        "for 34 min, since",
        "Cancelled by night watch: Disk full",
        "Its code was last heard of 34 min ago",
        "The delivery worker should have presumed it stopped at",
        f"Its executor could not be told, and that is not tried again: {ERROR}",
        "python manage.py deliver_cancellations",
    ):
        expect(page.get_by_text(told).first).to_be_in_viewport(ratio=1)
    for name in ("Kill now…", "Try again…"):
        expect(page.get_by_role("link", name=name)).to_be_in_viewport(ratio=1)

    # All of them, now.
    page.get_by_role("link", name="See the cancellation").click()
    page.get_by_role("link", name="Kill what is stopping…").click()
    expect(page.get_by_role("heading", name="Kill these runs now?")).to_be_in_viewport(ratio=1)
    page.get_by_label("Reason").fill("They do not stop")
    page.get_by_role("button", name="Yes, kill now").click()
    assert messages(page)[0].startswith("3 runs were still stopping.")
    expect(page.get_by_role("status")).to_have_text("cancelled, some runs are stopping")
    assert set(CancellationItem.objects.filter(outcome="cancelled").values_list("force")) == {
        (True,)
    }
