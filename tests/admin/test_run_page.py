"""The page of a run: what its summary says, what it costs, and that it shows no others' runs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.html import escape

from django_run_cancel.admin import columns, run_page
from django_run_cancel.admin.run_page import MAX_PARENTS, SHOWN_CHILDREN
from django_run_cancel.cancellation import cancel_runs, record_stopped, start_bulk_cancellation
from django_run_cancel.models import CancellationChunk, CancellationItem, get_run_model
from tests.admin.helpers import (
    CANCEL as CONFIRM,
)
from tests.admin.helpers import (
    KEYS,
    LIST,
    RECORDS,
    ago,
    hidden,
    logged_in,
    page_of,
    text,
    words,
)
from tests.helpers import make_run, make_runs

pytestmark = pytest.mark.django_db

MAX_STATEMENTS = 16


@pytest.fixture
def operator() -> Client:
    return logged_in("operator", "view_run", "view_job", "cancel_run", "view_cancellation")


def summary_url(run: Any) -> str:
    return page_of(run).replace("/change/", "/summary/")


def summary(client: Client, run: Any) -> str:
    return words(client.get(summary_url(run))).replace(" ,", ",")


def set_run(run: Any, **values: Any) -> None:
    get_run_model()._base_manager.filter(pk=run.pk).update(**values)


def is_live(client: Client, run: Any) -> bool:
    return "data-seconds" in text(client.get(summary_url(run)))


class TestState:
    def test_waiting(self, operator: Client) -> None:
        run = make_run(queued_at=ago(minutes=3.5))
        assert "queued for 3 min, since " in summary(operator, run)
        assert is_live(operator, run)

    def test_running(self, operator: Client) -> None:
        run = make_run("running", created_at=ago(days=3), started_at=ago(hours=2.5))
        assert "running for 2 h, since " in summary(operator, run)

    def test_ended(self, operator: Client) -> None:
        run = make_run("failed", finished_at=ago(days=2), failure_reason="No <disk>")
        shown = summary(operator, run)
        assert re.search(r"failed 2 d ago, at \d\d/\d\d/\d{4} [\d:]{8} Reason: No <disk>", shown)
        assert not is_live(operator, run)
        assert "ago" not in summary(operator, make_run("completed"))

    def test_stopping(self, operator: Client) -> None:
        run = make_run("running")
        cancel_runs([run.run_id], requested_by="night watch", reason="Disk full")
        set_run(run, finished_at=ago(seconds=40))
        CancellationItem.objects.update(escalates_at=ago(seconds=-19.5))
        shown = summary(operator, run)
        assert re.search(r"cancelled, stopping for 4\d s, since \d\d:\d\d:\d\d", shown)
        assert re.search(r"Will be killed at [\d:]{8}, in 1\d s\.", shown)
        assert re.search(r"Will be presumed stopped at [\d:]{8}, in 4 min, unless its", shown)
        assert "Cancelled by night watch: Disk full See the cancellation" in shown
        assert is_live(operator, run)

        CancellationItem.objects.update(escalates_at=ago(seconds=65))
        set_run(run, finished_at=ago(minutes=17.5))
        shown = summary(operator, run)
        assert re.search(r"worker should have had it killed at [\d:]{8}, 1 min ago", shown)
        assert re.search(r"worker should have presumed it stopped at .*, 12 min ago", shown)
        CancellationItem.objects.all().delete()
        assert "killed" not in summary(operator, run)

    def test_stopped(self, operator: Client) -> None:
        run = make_run("running")
        cancel_runs([run.run_id], requested_by="x")
        record_stopped([run.run_id], "killed")
        set_run(run, finished_at=ago(seconds=90), stopped_at=ago(seconds=30))
        shown = summary(operator, run)
        assert "cancelled, stopped (killed)" in shown
        assert "and 1 min after it was cancelled" in shown
        assert not is_live(operator, run)

    def test_never_started(self, operator: Client) -> None:
        run = make_run()
        cancel_runs([run.run_id], requested_by="x")
        assert "after it was cancelled" not in summary(operator, run)

    def test_record_is_linked_for_those_who_may_read_it(self) -> None:
        run = make_run()
        cancel_runs([run.run_id], requested_by="x")
        looker = logged_in("looker", "view_run", "view_job")
        assert "See the cancellation" not in summary(looker, run)


class TestFamily:
    def test_parents(self, operator: Client) -> None:
        runs = [make_run("running", title="Level 0")]
        for level in range(1, MAX_PARENTS + 2):
            runs.append(make_run("running", title=f"Level {level}", parent=runs[-1]))
        *above, run = runs
        shown = summary(operator, run)
        for level in range(1, MAX_PARENTS + 1):
            assert f"Level {level} \N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} Level" in shown
        assert "Level 0" not in shown
        assert f'href="{page_of(above[-1])}"' in text(operator.get(page_of(run)))
        assert "Part of" not in summary(operator, runs[0])

    def test_children__active_ones_first(self, operator: Client) -> None:
        run = make_run("running")
        make_runs(SHOWN_CHILDREN + 1, "completed", parent=run, title="Done")
        late = make_run("running", parent=run, title="Late <b>")
        stopping = make_run("running", parent=run, title="Stopping")
        cancel_runs([stopping.run_id], requested_by="x")
        page = text(operator.get(page_of(run)))
        assert "23 runs directly below: 1 active, 1 stopping, 21 ended" in page
        assert page.index(escape(late.title)) < page.index(page_of(stopping))
        assert page.index(page_of(stopping)) < page.index(">Done</a>")
        assert page.count(">Done</a>") == SHOWN_CHILDREN - 2
        (link,) = re.findall(rf'href="({LIST}\?parent__exact=[^"]+)"', page)
        make_run()
        assert len(operator.get(link).context["cl"].result_list) == 23

    def test_children__more_than_are_counted(
        self, operator: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_page, "MAX_COUNTED", 2)
        run = make_run("running")
        make_runs(5, parent=run)
        expected = "More than 2 runs directly below. Of the first of these: 3 active"
        assert expected in summary(operator, run)

    def test_none_that_the_user_may_not_see(
        self, operator: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make_run("running", parent=make_run(title="Theirs above", tenant="theirs"))
        make_run(parent=run, title="Theirs below", tenant="theirs")
        page = admin.site._registry[get_run_model()]
        everything = page.get_queryset
        monkeypatch.setattr(
            page, "get_queryset", lambda request: everything(request).filter(tenant="")
        )
        assert "Theirs" not in text(operator.get(page_of(run)))

    @pytest.mark.parametrize("count", [1, SHOWN_CHILDREN + 5])
    def test_statements(self, operator: Client, count: int) -> None:
        run = make_run("running", parent=make_run("running"))
        make_runs(count, parent=run)
        cancel_runs([run.run_id], requested_by="x")
        ContentType.objects.get_for_model(run)  # is cached: no other test decides on a statement
        with CaptureQueriesContext(connection) as captured:
            operator.get(summary_url(run))
        sent = [entry["sql"] for entry in captured if "SAVEPOINT" not in entry["sql"]]
        assert len(sent) <= MAX_STATEMENTS, sent


class TestSummaryAlone:
    def test_leaves_messages_for_the_next_page(self, operator: Client) -> None:
        run, other = make_run("running"), make_run()
        page = operator.get(CONFIRM, {"run_id": other.run_id})
        operator.post(CONFIRM, hidden(page))
        assert "has been cancelled" not in summary(operator, run)
        assert "1 run has been cancelled." in words(operator.get(page_of(run)))

    def test_is_only_read(self, operator: Client) -> None:
        assert operator.post(summary_url(make_run())).status_code == 405

    def test_of_a_run_that_is_being_added(
        self, operator: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = admin.site._registry[get_run_model()]
        monkeypatch.setattr(page, "has_add_permission", lambda request: True)
        assert "run-cancel-summary" not in text(operator.get(f"{LIST}add/"))

    def test_of_no_run(self, operator: Client) -> None:
        run = make_run()
        url = summary_url(run)
        get_run_model()._base_manager.all().delete()
        assert operator.get(url).status_code == 302


class TestWorkerWarning:
    COMMAND = "python manage.py deliver_cancellations"

    def pages(self, client: Client, run: Any) -> dict[str, str]:
        item = CancellationItem.objects.get()
        items = "/admin/django_run_cancel/cancellationitem/"
        urls = [LIST, page_of(run), summary_url(run), f"{CONFIRM}?run_id={run.run_id}"]
        urls += [RECORDS, f"{RECORDS}{item.cancellation_id}/change/", KEYS, f"{KEYS}add/"]
        urls += [items, f"{items}{item.pk}/change/"]
        found = {url: words(client.get(url)) for url in urls}
        found["new key"] = words(client.post(f"{KEYS}add/", {"name": "CI"}))
        key = re.findall(r'name="_selected_action" value="([^"]+)"', text(client.get(KEYS)))[0]
        sent = {"action": "revoke", "_selected_action": key}
        return found | {"revoke": words(client.post(KEYS, sent))}

    def test_on_every_page(self, chief: Client) -> None:
        run = make_run("running")
        cancel_runs([run.run_id], requested_by="x")
        for url, page in self.pages(chief, run).items():
            assert self.COMMAND not in page, url

        CancellationItem.objects.update(next_attempt_at=ago(minutes=12.5))
        for url, page in self.pages(chief, run).items():
            assert page.count("been told 12 min ago that its run is cancelled. Is the") == 1, url
            assert self.COMMAND in page, url

    def test_of_runs_that_should_be_presumed_stopped(self, chief: Client) -> None:
        run = make_run("running")
        cancel_runs([run.run_id], requested_by="x")
        CancellationItem.objects.update(delivery="delivered")
        set_run(run, finished_at=ago(minutes=17.5))
        expected = "A cancelled run should have been presumed stopped 12 min ago."
        assert expected in words(chief.get(LIST))

    def test_of_a_backend_that_was_removed(self, chief: Client) -> None:
        """Also while a worker is running: it cannot deliver."""
        run = make_run("running", backend="<old>")
        cancel_runs([run.run_id], requested_by="x")
        expected = (
            "1 executor has yet to be told that its run is cancelled, but "
            "RUN_CANCEL_BACKENDS has no backend “<old>”. Add it again and restart"
        )
        for url, page in self.pages(chief, run).items():
            assert page.count(expected) == 1, url
        CancellationItem.objects.update(delivery="failed")
        for page in self.pages(chief, run).values():
            assert "RUN_CANCEL_BACKENDS" not in page

    def test_of_a_bulk_cancellation(self, chief: Client) -> None:
        make_run("running")
        start_bulk_cancellation(get_run_model()._base_manager.all(), requested_by="x")
        CancellationChunk.objects.update(advanced_at=ago(minutes=12.5))
        expected = "A bulk cancellation has not gone on for 12 min. Is the delivery worker running?"
        assert expected in words(chief.get(LIST))


class TestColumns:
    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [
            *[(-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_599, "59 min")],
            *[(3_600, "1 h"), (86_399, "23 h"), (86_400, "1 d"), (86_400 * 400, "400 d")],
        ],
    )
    def test_duration(self, seconds: float, expected: str) -> None:
        assert columns.duration(timedelta(seconds=seconds)) == expected

    def test_ids(self) -> None:
        long = make_run().run_id
        shown = str(columns.short_id(long))
        assert f'title="{long}"' in shown
        assert re.sub(r"<[^>]+>", "", shown) == long
        assert "title" not in columns.short_id("nightly")
        assert "&lt;b&gt;" in columns.short_id("<b>")

    @pytest.mark.parametrize(
        ("status", "stop_state", "kind"),
        [
            *[("created", "", "waiting"), ("paused", "", "waiting"), ("running", "", "running")],
            *[("completed", "", "completed"), ("timed_out", "", "failed")],
            *[("cancelled", "stopping", "stopping"), ("cancelled", "presumed", "stopped")],
        ],
    )
    def test_badge(self, status: str, stop_state: str, kind: str) -> None:
        badge = str(columns.state_badge(get_run_model()(status=status, stop_state=stop_state)))
        assert f'run-cancel-state-{kind}"' in badge
