"""Cancelling from the admin of a model that refers to a run."""

from __future__ import annotations

import re
import uuid
from html import unescape
from typing import Any

import django
import pytest
from django.contrib import admin
from django.test import Client

from django_run_cancel.admin import CancelReferencedRunsAdminMixin, RunAdmin
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.arguments import MAX_RUN_IDS
from django_run_cancel.models import Cancellation, get_run_model
from tests.admin.helpers import CANCEL, confirm, logged_in, said, text, words
from tests.helpers import make_run, statuses
from tests.reports.models import Report

pytestmark = pytest.mark.django_db

REPORTS = "/admin/reports/report/"
FIELDS = ("run", "only_run", "task_id", "task_uuid")


@pytest.fixture
def operator() -> Client:
    names = ("view_report", "view_run", "view_job", "cancel_run")
    return logged_in("operator", *names)


@pytest.fixture(params=FIELDS)
def run_field(request: Any, monkeypatch: Any) -> str:
    return refer_by(request.param, monkeypatch)


def refer_by(field: str, monkeypatch: Any) -> str:
    monkeypatch.setattr(admin.site.get_model_admin(Report), "run_field", field, raising=False)
    return field


def report_of(run: Any, field: str) -> Report:
    value = {"task_id": run.run_id, "task_uuid": run.run_id}.get(field, run)
    return Report.objects.create(name=f"of {run.run_id}", **{field: value})


def new_run(status: str = "queued", **fields: Any) -> Any:
    return make_run(status, run_id=str(uuid.uuid4()), **fields)


def tick(client: Client, reports: list[Report], query: str = "", **more: Any) -> Any:
    data = {"action": "cancel_selected", "_selected_action": [row.pk for row in reports], **more}
    return client.post(REPORTS + query, data)


def page_of(report: Report) -> str:
    return f"{REPORTS}{report.pk}/change/"


def links_to_cancel(page: Any) -> list[str]:
    return [unescape(each) for each in re.findall(rf'href="({CANCEL}[^"]*)"', text(page))]


def test_action(operator: Client, run_field: str) -> None:
    running, other = new_run("running"), new_run()
    child = running.create_child()
    reports = [report_of(running, run_field), Report.objects.create(name="without")]
    report_of(other, run_field)
    assert "Cancel the runs of selected reports" in words(operator.get(REPORTS))
    page = tick(operator, reports, "?status=cancelled")
    assert "1 of the selected rows has no run." in words(page)
    assert "1 run will be cancelled , and 1 run below." in words(page)
    assert statuses(running) == ["running"]
    answer = confirm(operator, page, reason="Wrong month")
    assert answer["Location"] == f"{REPORTS}?status=cancelled"
    assert "1 run has been cancelled." in said(answer)
    assert statuses(running, child, other) == ["cancelled", "cancelled", "queued"]
    assert Cancellation.objects.get().reason == "Wrong month"


def test_action__rows_of_the_same_run(operator: Client, monkeypatch: Any) -> None:
    refer_by("run", monkeypatch)
    run = new_run()
    page = tick(operator, [report_of(run, "run"), report_of(run, "run")])
    assert said(confirm(operator, page)) == ["1 run has been cancelled."]


def test_action__no_run_at_all(operator: Client, run_field: str) -> None:
    reports = [Report.objects.create(name="without") for _ in range(2)]
    answer = tick(operator, reports)
    assert answer.status_code == 302
    assert said(answer) == ["2 of the selected rows have no run."]


def test_action__ids_that_no_run_has(operator: Client, monkeypatch: Any) -> None:
    refer_by("task_id", monkeypatch)
    run = new_run()
    reports = [Report.objects.create(task_id=task_id) for task_id in ("unknown", "x" * 255)]
    page = tick(operator, [*reports, report_of(run, "task_id")])
    assert "1 of the selected rows has no run." in words(page)
    assert "1 run does not exist." in words(page)
    answer = confirm(operator, page)
    assert "1 run has been cancelled." in said(answer)
    assert "1 run does not exist." in said(answer)


def test_action__more_than_one_request_takes(operator: Client) -> None:
    Report.objects.bulk_create(Report() for _ in range(MAX_RUN_IDS + 1))
    answer = tick(operator, [Report.objects.latest("pk")], select_across="1")
    (message,) = said(answer)
    assert message.startswith("More than 1,000 runs are selected, and nothing has been")


@pytest.mark.parametrize("missing", ["view", "cancel"])
def test_needs_both_permissions(missing: str) -> None:
    names = {"view": ["cancel_run"], "cancel": ["view_run", "view_job"]}[missing]
    looker = logged_in("looker", "view_report", *names)
    run = new_run()
    report = report_of(run, "run")
    assert "cancel_selected" not in text(looker.get(REPORTS))
    assert said(tick(looker, [report])) in ([], ["No action selected."])
    assert CANCEL not in text(looker.get(page_of(report)))
    assert statuses(run) == ["queued"]


def test_keeps_to_the_rows_and_runs_of_both_admins(operator: Client, monkeypatch: Any) -> None:
    hidden_row, hidden_run, seen = (new_run(title=title) for title in ("row", "run", "seen"))
    reports = [report_of(run, "run") for run in (hidden_row, hidden_run, seen)]
    for model, lookups in ((Report, {"run": hidden_row}), (get_run_model(), {"title": "run"})):
        page_class: Any = admin.site.get_model_admin(model)
        monkeypatch.setattr(
            page_class,
            "get_queryset",
            lambda request, everything=page_class.get_queryset, hidden=lookups: everything(
                request
            ).exclude(**hidden),
        )
    answer = confirm(operator, tick(operator, reports))
    assert said(answer) == ["1 run has been cancelled.", "1 run does not exist."]
    assert statuses(hidden_row, hidden_run, seen) == ["queued", "queued", "cancelled"]
    assert links_to_cancel(operator.get(page_of(reports[1]))) == []
    assert operator.get(page_of(reports[0])).status_code == 302


def test_button(operator: Client, run_field: str) -> None:
    run = new_run("running")
    report = report_of(run, run_field)
    (url,) = links_to_cancel(operator.get(page_of(report)))
    answer = confirm(operator, operator.get(url))
    assert answer["Location"] == page_of(report)
    assert statuses(run) == ["cancelled"]
    assert "Cancelled, stopping. By operator, without a reason." in words(
        operator.get(page_of(report))
    )


@pytest.mark.parametrize("run_id", ["", "unknown", "x" * 255])
def test_button__no_run(operator: Client, monkeypatch: Any, run_id: str) -> None:
    refer_by("task_id", monkeypatch)
    page = operator.get(page_of(Report.objects.create(task_id=run_id)))
    assert links_to_cancel(page) == []
    assert "run-cancel-bar" not in text(page)


def test_button__finished(operator: Client) -> None:
    assert links_to_cancel(operator.get(page_of(report_of(new_run("completed"), "run")))) == []


def test_says_why_only_to_who_may_view_runs() -> None:
    run = new_run()
    cancel_runs([run.run_id], requested_by="night watch")
    looker = logged_in("looker", "view_report")
    assert "night watch" not in words(looker.get(page_of(report_of(run, "run"))))


def test_row_that_does_not_exist(operator: Client) -> None:
    for pk in ("1", "abc"):
        assert operator.get(f"{REPORTS}{pk}/change/").status_code == 302


class TestHosts:
    def page_class(self, site: Any = admin.site, **attributes: Any) -> Any:
        attributes = {"__module__": __name__, **attributes}
        bases = (CancelReferencedRunsAdminMixin, admin.ModelAdmin)
        return type("ReportAdmin", bases, attributes)(Report, site)

    def test_media_and_actions_of_the_host_stay(self) -> None:
        media = type("Media", (), {"css": {"all": ["host.css"]}})
        page = self.page_class(Media=media, actions=["other"])
        for name in ("host.css", "django_run_cancel/admin.css"):
            assert f'href="/static/{name}"' in str(page.media)
        assert page.actions == ["other", "cancel_selected"]
        assert self.page_class(actions=None).actions is None

    def test_checks(self) -> None:
        assert self.page_class().check() == []
        (found,) = self.page_class(run_field="job").check()
        assert (found.id, found.msg) == (
            "django_run_cancel.E019",
            "reports.Report has no field 'job'.",
        )
        site = admin.AdminSite("ops")
        (found,) = self.page_class(site).check()
        assert found.id == "django_run_cancel.E020"
        site.register(get_run_model(), admin.ModelAdmin)
        (found,) = self.page_class(site).check()
        assert found.id == "django_run_cancel.E020"
        site.unregister(get_run_model())
        site.register(get_run_model(), RunAdmin)
        assert self.page_class(site).check() == []

    def test_without_a_page_that_asks__nobody_may(self, rf: Any) -> None:
        page = self.page_class(admin.AdminSite("ops"))
        assert not page.has_cancel_permission(rf.get("/"))


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.1 and newer have actions there")
def test_sent_from_the_page_of_a_row(operator: Client) -> None:
    run = new_run()
    report = report_of(run, "run")
    sent = {
        "CHANGE_FORM-action": "cancel_selected",
        "_selected_action": report.pk,
        "index": "0",
    }
    page = operator.post(page_of(report), sent)
    assert "1 run will be cancelled ." in words(page)
    assert confirm(operator, page)["Location"] == page_of(report)
    assert statuses(run) == ["cancelled"]
