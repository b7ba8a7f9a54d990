"""Killing from the admin what was asked to stop and still runs: who may, and what the pages say."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from django_run_cancel.backends import StopOutcome
from django_run_cancel.cancellation import cancel_runs, record_stopped
from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import Cancellation, CancellationItem
from django_run_cancel.testing import DummyBackend
from tests.admin.helpers import KILL, LIST, confirm, hidden, logged_in, page_of, said, text, words
from tests.delivery import helpers
from tests.delivery.helpers import cancelled, item_of
from tests.helpers import make_run, statuses

pytestmark = pytest.mark.django_db

MAY_KILL = ("view_run", "view_job", "cancel_run", "force_cancel_run")


@pytest.fixture
def chief(dummy: DummyBackend) -> Client:
    return logged_in("chief", *MAY_KILL)


def kill(client: Client, page: Any, **fields: str) -> Any:
    return client.post(KILL, {**hidden(page), **fields})


def test_asks_then_kills_then_tells(chief: Client, dummy: DummyBackend) -> None:
    run = cancelled(title="Import")
    deliver_due()
    assert f"{KILL}?run_id={run.run_id}" in text(chief.get(page_of(run)))
    page = chief.get(KILL, {"run_id": run.run_id})
    shown = words(page)
    assert "Kill “Import” now?" in shown
    assert "1 run is still stopping and will be killed, if its executor can." in shown
    assert "Import" in shown
    assert "will be killed" in shown
    assert "Yes, kill now" in shown
    assert 'name="force"' not in text(page)
    assert not item_of(run).force

    answer = kill(chief, page, reason="It does not stop")
    assert said(answer) == ["1 run was still stopping. Its executor is told to kill it."]
    assert answer["Location"] == f"{LIST}by-run-id/?run_id={run.run_id}"
    record = Cancellation.objects.latest("pk")
    assert (record.requested_by, record.source, record.force) == ("chief", "admin", True)
    assert item_of(run).force
    entry = LogEntry.objects.get(object_id=str(run.pk))
    assert entry.change_message == f"Force asked for with {record}. It does not stop"

    shown = words(chief.get(page_of(run)))
    assert "Its executor is being told to kill it." in shown
    deliver_due()
    shown = words(chief.get(page_of(run)))
    assert "Its executor has been told to kill it, and has not confirmed yet that it did." in shown
    assert "Kill now" not in shown
    assert [force for _, force in dummy.stopped] == [False, True]


def test_sent_twice(chief: Client, dummy: DummyBackend) -> None:
    run = cancelled()
    page = chief.get(KILL, {"run_id": run.run_id})
    kill(chief, page)
    kill(chief, page)
    assert Cancellation.objects.count() == 2
    deliver_due()
    assert [force for _, force in dummy.stopped] == [True]


def test_killed(chief: Client, dummy: DummyBackend) -> None:
    run = cancelled()
    page = chief.get(KILL, {"run_id": run.run_id})
    dummy.outcome = StopOutcome.STOPPED
    kill(chief, page)
    deliver_due()
    shown = words(chief.get(page_of(run)))
    assert "cancelled, stopped (killed)" in shown
    assert "Kill now" not in shown


@pytest.mark.parametrize("missing", ["cancel_run", "force_cancel_run", "view"])
def test_needs_all_permissions(missing: str, dummy: DummyBackend) -> None:
    run = cancelled()
    permitted = [name for name in MAY_KILL if not name.startswith(missing)]
    client = logged_in("operator", *permitted)
    if missing != "view":
        assert "Kill now" not in text(client.get(page_of(run)))
    page = logged_in("chief", *MAY_KILL).get(KILL, {"run_id": run.run_id})
    assert client.get(KILL, {"run_id": run.run_id}).status_code == 403
    assert client.post(KILL, hidden(page)).status_code == 403
    assert not item_of(run).force


def test_force_is_not_smuggled_into_the_other_page(dummy: DummyBackend) -> None:
    run = cancelled()
    operator = logged_in("operator", "view_run", "view_job", "cancel_run")
    page = operator.get(f"{LIST}cancel/", {"run_id": run.run_id})
    answer = confirm(operator, page, force="on")
    assert said(answer) == ["1 run was cancelled before."]
    assert not item_of(run).force


def test_children_that_still_stop(chief: Client) -> None:
    parent = make_run("running")
    child = parent.create_child(backend="dummy", external_id="job")
    child.mark_running()
    cancel_runs([parent.run_id], requested_by="x")
    page = chief.get(KILL, {"run_id": parent.run_id})
    assert "2 runs are still stopping and will be killed" in words(page)
    assert said(kill(chief, page)) == [
        "2 runs were still stopping. Their executors are told to kill them."
    ]
    assert item_of(child).force
    record = Cancellation.objects.latest("pk")
    chief.get(f"/admin/django_run_cancel/cancellation/{record.pk}/change/")
    admin = logged_in("admin", is_superuser=True)
    shown = words(admin.get(f"/admin/django_run_cancel/cancellation/{record.pk}/change/"))
    assert "All, in a list of their own" in shown


@pytest.mark.parametrize("how", ["acknowledged", "presumed", "never_started", "completed"])
def test_nothing_left_to_kill(chief: Client, how: str) -> None:
    status = {"never_started": "queued", "completed": "completed"}.get(how, "running")
    run = cancelled(status)
    page = None
    if status == "running":
        page = chief.get(KILL, {"run_id": run.run_id})
        record_stopped([run.run_id], how)
    shown = words(chief.get(page_of(run)))
    assert "Kill now" not in shown
    assert "kill it" not in shown
    late = chief.get(KILL, {"run_id": run.run_id})
    assert "There is nothing left to kill." in words(late)
    assert "Yes, kill now" not in words(late)
    if page is not None:  # it stopped while the page was read
        assert said(kill(chief, page)) == ["1 run was cancelled before."]
        assert not item_of(run).force


def test_active_run__is_cancelled_by_force(chief: Client) -> None:
    run = make_run("running")
    assert "Kill now" not in words(chief.get(page_of(run)))
    page = chief.get(KILL, {"run_id": run.run_id})
    assert "1 run will be cancelled" in words(page)
    kill(chief, page)
    assert statuses(run) == ["cancelled"]
    assert item_of(run).force


class TestCannotBeKilled:
    def says(self, chief: Client, run: Any) -> str:
        shown = words(chief.get(page_of(run)))
        assert "Kill now" not in shown
        return shown

    def test_backend_cannot(self, chief: Client, settings: Any) -> None:
        settings.RUN_CANCEL_BACKENDS = {
            **settings.RUN_CANCEL_BACKENDS,
            "gentle": {"BACKEND": f"{helpers.__name__}.Gentle"},
        }
        shown = self.says(chief, cancelled(backend="gentle"))
        assert "Its executor (gentle) cannot kill it: only its own checkpoints end it." in shown

    def test_no_executor(self, chief: Client) -> None:
        shown = self.says(chief, cancelled(external_id=""))
        assert "No executor knows this run: only its own checkpoints end it." in shown
        assert "No executor had to be told." in shown

    def test_backend_unknown_here__the_worker_may_know_it(self, chief: Client) -> None:
        run = cancelled(backend="removed")
        assert "Kill now" in words(chief.get(page_of(run)))

    def test_record_deleted(self, chief: Client) -> None:
        run = cancelled()
        Cancellation.objects.all().delete()
        assert "Kill now" in words(chief.get(page_of(run)))

    def test_failed__may_be_tried_again(self, chief: Client) -> None:
        run = cancelled(force=True)
        assert "Kill now" not in words(chief.get(page_of(run)))
        CancellationItem.objects.update(delivery="failed")
        assert "Kill now" in words(chief.get(page_of(run)))
