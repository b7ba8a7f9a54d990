"""Cancelling from the admin: who may, what the page says before, what is on record afterwards."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import IntegrityError, OperationalError, connection
from django.test import Client

from django_run_cancel.admin import CancellationAdmin, CancelRunsAdminMixin
from django_run_cancel.admin import confirm as confirm_page
from django_run_cancel.admin.base import link
from django_run_cancel.cancellation import advance_bulk_cancellations, cancel_runs
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import RunStatus, Source
from tests.admin.helpers import (
    CANCEL,
    LIST,
    RECORDS,
    RUN,
    confirm,
    hidden,
    logged_in,
    page_of,
    said,
    text,
    tick,
    words,
)
from tests.helpers import ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator() -> Client:
    return logged_in("operator", "view_run", "view_job", "cancel_run")


@pytest.fixture
def looker() -> Client:
    return logged_in("looker", "view_run", "view_job")


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
        assert said(confirm(operator, page)) == ["1000 runs have been cancelled."]
        assert set(statuses(*runs)) == {"cancelled"}

    def test_more_than_one_request_takes(self, operator: Client, settings: Any) -> None:
        settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = None
        answer = tick(operator, make_runs(MAX_RUN_IDS + 1))
        (message,) = said(answer)
        assert message.startswith("More than 1000 runs are selected, and nothing has been")
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


class TestPageThatAsks:
    def test_of_a_single_run(self, operator: Client) -> None:
        run = make_run(title="Import")
        page = operator.get(CANCEL, {"run_id": run.run_id})
        assert "1 run will be cancelled ." in words(page)
        answer = confirm(operator, page)
        assert said(answer) == ["1 run has been cancelled."]
        assert operator.get(answer["Location"], follow=True).context["original"] == run

    @pytest.mark.parametrize("run_id", ["", "\0", "unknown", "x" * 5000, "<script>"])
    def test_of_no_run(self, operator: Client, run_id: str) -> None:
        page = operator.get(CANCEL, {"run_id": run_id})
        assert "There is nothing left to cancel." in words(page)
        assert "1 run does not exist." in words(page)
        assert "<script>" not in text(page).split('id="content-main"')[1]
        assert said(confirm(operator, page, run_ids='["unknown"]')) == ["1 run does not exist."]

    def test_needs_the_permission_to_look_too(self) -> None:
        blind = logged_in("blind", "cancel_run")
        run = make_run()
        assert blind.get(CANCEL, {"run_id": run.run_id}).status_code == 403
        assert blind.post(CANCEL, {"run_ids": json.dumps([run.run_id])}).status_code == 403

    def test_needs_the_permission(self, looker: Client) -> None:
        run = make_run()
        assert looker.get(CANCEL, {"run_id": run.run_id}).status_code == 403
        sent = looker.post(CANCEL, {"run_ids": json.dumps([run.run_id]), "token": "t"})
        assert sent.status_code == 403
        assert statuses(run) == ["queued"]

    def test_needs_a_login_and_a_csrf_token(self) -> None:
        assert Client().get(CANCEL)["Location"].startswith("/admin/login/")
        strict = logged_in("strict", is_superuser=True)
        strict.handler.enforce_csrf_checks = True
        assert strict.post(CANCEL, {"run_ids": "x", "token": "t"}).status_code == 403

    def test_sent_twice(self, operator: Client) -> None:
        page = tick(operator, make_runs(2))
        first, second = confirm(operator, page), confirm(operator, page)
        assert said(first)[-1] == said(second)[-1] == "2 runs have been cancelled."
        assert Cancellation.objects.count() == 1
        assert LogEntry.objects.count() == 2

    def test_sent_again_with_another_reason(self, operator: Client) -> None:
        page = tick(operator, make_runs(2))
        confirm(operator, page, reason="one")
        again = confirm(operator, page, reason="two")
        assert "This page was sent before, with other entries." in words(again)
        assert "2 runs are cancelled already." in words(again)
        assert Cancellation.objects.count() == 1

    def test_reason_that_is_too_long_is_not_lost(self, operator: Client) -> None:
        run = make_run()
        page = tick(operator, [run], "?status=queued")
        reason = "<&" * 1001
        again = confirm(operator, page, reason=reason)
        assert "at most 2000 characters (it has 2002)" in words(again)
        assert again.context["form"]["reason"].value() == reason
        assert statuses(run) == ["queued"]
        answer = confirm(operator, again, reason="short")
        assert operator.get(answer["Location"])["Location"] == page_of(run)
        assert statuses(run) == ["cancelled"]

    def test_line_break_is_one_character(self, operator: Client) -> None:
        confirm(operator, tick(operator, make_runs(1)), reason="\r\n".join("x" * 1000))
        assert Cancellation.objects.get().reason == "\n".join("x" * 1000)

    def test_ids_of_any_form(self, operator: Client) -> None:
        both = [make_run(run_id=run_id) for run_id in ("nightly import", "nightly", "import")]
        confirm(operator, tick(operator, both[:1]))
        assert statuses(*both) == ["cancelled", "queued", "queued"]

    def test_too_many_ids(self, operator: Client) -> None:
        run_ids = json.dumps(["tsk_1"] * (MAX_RUN_IDS + 1))
        page = operator.post(CANCEL, {"run_ids": run_ids, "token": "t"})
        assert "More than 1000 runs are selected" in words(page)
        assert not Cancellation.objects.exists()

    @pytest.mark.parametrize(
        "run_ids",
        ["", "a", "\0", "[", "[]", "{}", "7", "null", "[7]", r'["\ud800"]', r'["\u0000"]'],
    )
    def test_no_form(self, operator: Client, run_ids: str) -> None:
        assert operator.post(CANCEL, {"run_ids": run_ids}).status_code == 200
        assert operator.post(CANCEL, {"run_ids": run_ids, "token": "t"}).status_code == 200
        assert operator.post(CANCEL, {"token": "\0"}).status_code == 200
        assert not Cancellation.objects.exists()

    @pytest.mark.parametrize("url", ["https://evil.example/", "//evil.example", "javascript:x"])
    def test_goes_to_no_other_site(self, operator: Client, url: str) -> None:
        page = tick(operator, make_runs(2))
        assert confirm(operator, page, next=url)["Location"] == LIST

    def test_keeps_to_the_runs_of_the_admin(self, operator: Client, monkeypatch: Any) -> None:
        ours, theirs = make_run(tenant="ours"), make_run(tenant="theirs")
        page_class = admin.site._registry[get_run_model()]
        everything = page_class.get_queryset
        monkeypatch.setattr(
            page_class,
            "get_queryset",
            lambda request: everything(request).filter(tenant="ours"),
        )
        answer = operator.post(CANCEL, {"run_ids": json.dumps(ids([ours, theirs])), "token": "t"})
        assert said(answer) == ["1 run has been cancelled.", "1 run does not exist."]
        assert statuses(ours, theirs) == ["cancelled", "queued"]


def test_more_below_than_one_transaction_takes(operator: Client, settings: Any) -> None:
    settings.RUN_CANCEL_MAX_TREE = 1
    run = make_run("running", title="Crawl")
    children = [run.create_child() for _ in range(2)]
    page = operator.get(CANCEL, {"run_id": run.run_id})
    assert "More than 1 runs are below: the delivery worker cancels those" in words(page)
    answer = confirm(operator, page)
    assert said(answer)[-1] == "The runs below them follow: the delivery worker cancels them."
    # What is left of a run that is cancelled already.
    again = operator.get(CANCEL, {"run_id": run.run_id})
    assert "1 run is cancelled already." in words(again)
    advance_bulk_cancellations(10)
    assert statuses(run, *children) == ["cancelled"] * 3


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
        assert page.actions == ["other", "cancel_selected"]
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


class TestBusyDatabase:
    def fail(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE") and RUN.db_table in sql:
            raise OperationalError("database is locked")
        return execute(sql, params, many, context)

    @pytest.mark.django_db(transaction=True)
    def test_says_so_and_loses_nothing(self, operator: Client) -> None:
        run = make_run()
        page = tick(operator, [run])
        with connection.execute_wrapper(self.fail):
            again = confirm(operator, page, reason="why")
        assert "The database is busy. Nothing has been changed" in words(again)
        assert again.context["form"]["reason"].value() == "why"
        assert said(confirm(operator, again, reason="why")) == ["1 run has been cancelled."]
        assert statuses(run) == ["cancelled"]

    def test_is_not_hidden_in_a_transaction_of_the_host(self, operator: Client) -> None:
        page = tick(operator, [make_run()])
        with connection.execute_wrapper(self.fail), pytest.raises(OperationalError):
            confirm(operator, page)


def test_a_retry_that_waits_is_stopping(operator: Client) -> None:
    run = make_run()
    run.mark_running()
    run.mark_queued()
    answer = confirm(operator, tick(operator, [run]))
    assert said(answer)[-1] == "1 was running and is now stopping."


class TestForce:
    def test_needs_a_permission_of_its_own(self, operator: Client) -> None:
        page = tick(operator, make_runs(1))
        assert 'name="force"' not in text(page)
        confirm(operator, page, force="on")
        assert not Cancellation.objects.get().force

    def test_is_recorded_for_the_executors(self) -> None:
        chief = logged_in("chief", "view_run", "view_job", "cancel_run", "force_cancel_run")
        for fields, force in (({"force": "on"}, True), ({}, False)):
            page = tick(chief, make_runs(1, "running"))
            assert "By force" in words(page)
            confirm(chief, page, **fields)
            record = Cancellation.objects.latest("pk")
            assert (record.force, record.items.get().force) == (force, force)


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
        assert f'<a href="{page_of(run)}">' in page

    def test_says_whether_the_executor_was_told(self, operator: Client) -> None:
        run = make_run("running")
        cancel_runs([run.run_id], requested_by="x")
        assert "Executor told: pending" in words(operator.get(page_of(run)))
        CancellationItem.objects.update(delivery="failed", last_error="broker is <away>")
        assert "Executor told: failed. broker is <away>" in words(operator.get(page_of(run)))
        assert "Executor told" not in words(operator.get(page_of(make_run())))

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


def test_history_that_cannot_be_written__does_not_undo_the_cancellation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a user who is deleted meanwhile, or in a table with an older charset."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise IntegrityError("no such user")

    run = make_run()
    client = logged_in("chief", is_superuser=True)
    monkeypatch.setattr(LogEntry.objects, "log_actions", refuse)
    page = client.get(CANCEL, {"run_id": run.run_id})
    assert confirm(client, page).status_code == 302
    assert statuses(run) == ["cancelled"]
    assert "history" in caplog.text
