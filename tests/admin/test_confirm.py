"""The page that asks before runs are cancelled: what it says, and what it does on a yes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import IntegrityError, OperationalError, connection
from django.test import Client

from django_run_cancel.cancellation import advance_bulk_cancellations
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.models import Cancellation, get_run_model
from tests.admin.helpers import (
    CANCEL,
    LIST,
    RUN,
    confirm,
    logged_in,
    page_of,
    said,
    text,
    tick,
    words,
)
from tests.helpers import ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db


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

    def test_numbers_of_the_result_have_separators(self, operator: Client) -> None:
        parent = make_run("running")
        children = make_runs(1_234, parent=parent)
        page = operator.get(CANCEL, {"run_id": parent.run_id})
        assert "and 1,234 runs below" in words(page)
        assert "1,234 runs below have been cancelled too." in said(confirm(operator, page))
        assert set(statuses(*children)) == {"cancelled"}

    def test_too_many_ids(self, operator: Client) -> None:
        run_ids = json.dumps(["tsk_1"] * (MAX_RUN_IDS + 1))
        page = operator.post(CANCEL, {"run_ids": run_ids, "token": "t"})
        assert "More than 1,000 runs are selected" in words(page)
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


def test_large_numbers_have_separators(operator: Client) -> None:
    parent = make_run("running")
    make_runs(1_100, parent=parent)
    shown = words(operator.get(CANCEL, {"run_id": parent.run_id}))
    assert "1 run will be cancelled , and 1,100 runs below" in shown
    assert "and 1,080 more" in shown
    assert "Yes, cancel 1,101 runs" in shown


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


class TestBusyDatabase:
    def fail(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "UPDATE" in sql and RUN.db_table in sql:
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
