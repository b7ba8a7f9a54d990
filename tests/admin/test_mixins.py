"""Cancelling from the list and from the page of a run, and what hosts may change of both."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.test import Client

from django_run_cancel.admin import CancellationAdmin, CancelRunsAdminMixin
from django_run_cancel.admin import confirm as confirm_page
from django_run_cancel.admin.base import link
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import RunStatus, Source
from tests.admin.helpers import (
    CANCEL,
    LIST,
    RECORDS,
    confirm,
    hidden,
    logged_in,
    page_of,
    said,
    text,
    tick,
    words,
)
from tests.helpers import make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


class TestAction:
    def test_asks_then_cancels_then_tells(self, operator: Client) -> None:
        running, queued = make_run("running", title="Import"), make_run()
        child = running.create_child()
        before, finished = make_run(), make_run("completed")
        cancel_runs([before.run_id], requested_by="x")
        page = tick(operator, [running, queued, before, finished])
        said_before = words(page)
        assert "2 runs will be cancelled , and 1 run below." in said_before
        assert "1 of these has started" in said_before
        assert "1 run is cancelled already." in said_before
        assert "1 run has finished and cannot be cancelled." in said_before
        assert "Yes, cancel 3 runs" in said_before
        assert statuses(running, queued) == ["running", "queued"]

        answer = confirm(operator, page, reason="Wrong <b>catalogue</b>")
        assert answer["Location"] == LIST
        assert said(answer) == [
            "2 runs have been cancelled.",
            "1 run below has been cancelled with it.",
            "1 was running and is now stopping.",
            "1 run was cancelled before.",
            "1 run had finished and stays as it is.",
        ]
        assert statuses(running, queued, child, finished) == ["cancelled"] * 3 + ["completed"]

        record = Cancellation.objects.latest("pk")
        assert (record.requested_by, record.source) == ("operator", Source.ADMIN)
        assert record.reason == "Wrong <b>catalogue</b>"
        assert record.ip_address == "127.0.0.1"
        assert record.user_id != ""
        logged = LogEntry.objects.values_list("object_id", "change_message", "user__username")
        assert set(logged) == {
            (str(run.pk), f"Cancelled with {record}. Wrong <b>catalogue</b>", "operator")
            for run in (running, queued)
        }

    def test_several__lead_to_the_cancellation_or_back_to_the_list(self, operator: Client) -> None:
        page = tick(operator, make_runs(2), "?status=active")
        assert confirm(operator, page)["Location"] == f"{LIST}?status=active"
        reader = logged_in("reader", "view_run", "view_job", "cancel_run", "view_cancellation")
        answer = confirm(reader, tick(reader, make_runs(2), "?status=active"))
        record = Cancellation.objects.latest("pk")
        assert answer["Location"] == f"{RECORDS}{record.pk}/change/"
        assert said(answer) == ["2 runs have been cancelled."]

    def test_one__leads_to_its_page(self, operator: Client) -> None:
        (run,) = make_runs(1)
        answer = confirm(operator, tick(operator, [run], "?status=active"))
        assert operator.get(answer["Location"])["Location"] == page_of(run)

    def test_any_number_of_rows_is_one_field(self, operator: Client, settings: Any) -> None:
        settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = None
        runs = make_runs(MAX_RUN_IDS)
        page = tick(operator, runs)
        assert len(hidden(page)) == 4
        assert "and 980 more" in words(page)
        assert said(confirm(operator, page)) == ["1,000 runs have been cancelled."]
        assert set(statuses(*runs)) == {"cancelled"}

    def test_more_than_one_request_takes(self, operator: Client, settings: Any) -> None:
        settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = None
        answer = tick(operator, make_runs(MAX_RUN_IDS + 1))
        (message,) = said(answer)
        assert message.startswith("More than 1,000 runs are selected, and nothing has been")
        assert "manage.py cancel_runs" in message
        assert not Cancellation.objects.exists()

    def test_nothing_left_to_cancel(self, operator: Client) -> None:
        page = tick(operator, make_runs(1, "failed"))
        assert "There is nothing left to cancel." in words(page)
        assert "Yes, cancel" not in words(page)

    def test_only_what_is_below(self, operator: Client) -> None:
        run = make_run("running")
        cancel_runs([run.run_id], requested_by="x")
        get_run_model()._default_manager.create(parent=run)
        page = tick(operator, [run])
        assert "1 run below will be cancelled ." in words(page)
        assert said(confirm(operator, page))[0] == "1 run below has been cancelled with it."

    def test_no_permission(self, looker: Client) -> None:
        run = make_run()
        assert "cancel_selected" not in text(looker.get(LIST))
        assert said(tick(looker, [run])) in ([], ["No action selected."])
        assert statuses(run) == ["queued"]

    @pytest.mark.parametrize("pk", ["abc", "9" * 30, "\0", "-1"])
    def test_no_key(self, operator: Client, pk: str) -> None:
        make_run()
        data = {"action": "cancel_selected", "_selected_action": pk}
        answer = operator.post(LIST, data)
        assert answer.status_code in {200, 302}
        assert not Cancellation.objects.exists()


class TestHosts:
    """What hosts may do with the mixin and with ModelAdmin."""

    def page_class(self, **attributes: Any) -> Any:
        attributes = {"__module__": __name__, **attributes}
        kind = type("HostAdmin", (CancelRunsAdminMixin, admin.ModelAdmin), attributes)
        return kind(get_run_model(), admin.site)

    def test_media_and_actions_of_the_host_stay(self) -> None:
        media = type("Media", (), {"css": {"all": ["host.css"]}})
        page = self.page_class(Media=media, actions=["other"])
        for name in ("host.css", "django_run_cancel/admin.css"):
            assert f'href="/static/{name}"' in str(page.media)
        assert page.actions == ["other", "cancel_selected", "kill_selected"]
        assert self.page_class(actions=None).actions is None

    def test_error_of_another_action_is_not_hidden(
        self, operator: Client, monkeypatch: Any
    ) -> None:
        def fail(*args: Any) -> None:
            raise ValueError("of the host")

        page = admin.site._registry[get_run_model()]
        monkeypatch.setattr(page, "actions", [fail])
        with pytest.raises(ValueError, match="of the host"):
            operator.post(LIST, {"action": "fail", "_selected_action": make_run().pk})

    def test_without_pages_of_cancellations(self, monkeypatch: Any) -> None:
        chief = logged_in("chief", is_superuser=True)
        page = tick(chief, make_runs(2))
        monkeypatch.setattr(confirm_page, "RECORD_PAGE", "no_such_page")
        answer = confirm(chief, page)
        assert answer["Location"] == LIST
        assert said(answer) == ["2 runs have been cancelled."]

    def test_second_admin_site(self) -> None:
        site = admin.AdminSite("ops")
        site.register(Cancellation, CancellationAdmin)
        assert link(site, "label", "no_such_page") == "label"


class TestRunPage:
    def test_button(self, operator: Client, looker: Client) -> None:
        run, finished = make_run("paused"), make_run("completed")
        assert f"{CANCEL}?run_id={run.run_id}" in text(operator.get(page_of(run)))
        assert CANCEL not in text(looker.get(page_of(run)))
        assert CANCEL not in text(operator.get(page_of(finished)))

    def test_says_who_cancelled_it_and_why(self, operator: Client) -> None:
        run, other = make_run("running"), make_run()
        cancel_runs([run.run_id], requested_by="night watch", reason="Disk <full>")
        cancel_runs([other.run_id], requested_by="cron")
        assert "Cancelled by night watch: Disk <full>" in words(operator.get(page_of(run)))
        shown = words(operator.get(page_of(other)))
        assert "cancelled, never started" in shown
        assert "Cancelled by cron, without a reason." in shown
        Cancellation.objects.all().delete()
        assert "cancelled, stopping" in words(operator.get(page_of(run)))

    @pytest.mark.parametrize("run_id", ["tsk_1", "1", "a b", "ä/ö?&=#", '"<b>"'])
    def test_is_found_by_run_id(self, operator: Client, run_id: str) -> None:
        make_run()
        run = make_run(run_id=run_id)
        page = operator.get(CANCEL, {"run_id": run_id})
        assert operator.get(confirm(operator, page)["Location"])["Location"] == page_of(run)
        assert statuses(run) == ["cancelled"]

    @pytest.mark.parametrize("run_id", ["", "tsk_unknown", "\0", "9" * 400])
    def test_is_not_found(self, operator: Client, run_id: str) -> None:
        answer = operator.get(f"{LIST}by-run-id/", {"run_id": run_id})
        assert answer["Location"] == "/admin/"
        assert operator.get(f"{LIST}9{'9' * 40}/change/").status_code == 302

    def test_parent(self, operator: Client) -> None:
        run = make_run("running")
        child = run.create_child()
        page = text(operator.get(page_of(child)))
        assert f'href="{page_of(run)}"' in page

    def test_says_whether_the_executor_was_told(self, operator: Client) -> None:
        run = make_run("running")
        cancel_runs([run.run_id], requested_by="x")
        assert "Its executor has yet to be told." in words(operator.get(page_of(run)))
        CancellationItem.objects.update(attempts=2, last_error="broker is <away>")
        told = "Its executor could not be told yet, and that is tried again: broker is <away>"
        assert told in words(operator.get(page_of(run)))
        CancellationItem.objects.update(delivery="failed")
        told = "Its executor could not be told, and that is not tried again: broker is <away>"
        shown = words(operator.get(page_of(run)))
        assert told in shown
        assert "Try again…" not in shown  # of the cancellation, which this user may not read
        CancellationItem.objects.update(delivery="delivered", last_error="")
        assert "Its executor has been told." in words(operator.get(page_of(run)))
        assert "xecutor has" not in words(operator.get(page_of(make_run())))

    def test_nothing_can_be_written(self) -> None:
        chief = logged_in("chief", is_superuser=True)
        run = make_run()
        assert chief.post(page_of(run), {"status": "completed"}).status_code == 403
        assert chief.get(f"{LIST}add/").status_code == 403
        assert chief.post(page_of(run).replace("change", "delete")).status_code == 403
        assert statuses(run) == [RunStatus.QUEUED]


def test_page_of_a_run__no_menu_of_actions_beside_the_button(operator: Client) -> None:
    """Django 6.1 and newer could have one."""
    page = text(operator.get(page_of(make_run())))
    assert page.count(CANCEL) == 1
    assert "cancel_selected" not in page
