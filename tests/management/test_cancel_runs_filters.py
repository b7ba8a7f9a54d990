"""``manage.py cancel_runs`` with filters, called from Python."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_run_cancel.cancellation import bulk
from django_run_cancel.management import reports
from django_run_cancel.models import Cancellation, get_run_model
from tests.helpers import ids, make_run, make_runs, statuses
from tests.management.helpers import RECORD, before_each, failing, run

pytestmark = pytest.mark.usefixtures("fixed_pace")

RUN = get_run_model()


@pytest.mark.django_db
class TestByFilter:
    def test_only_what_is_active_and_fits(self) -> None:
        wanted = make_runs(230, "running", tenant="acme", run_type="crawl")
        others = [
            make_run("queued", tenant="acme", run_type="crawl"),
            make_run("running", tenant="acme"),
            make_run("running", tenant="globex", run_type="crawl"),
            make_run("completed", tenant="acme", run_type="crawl"),
        ]
        before = statuses(*others)
        args = ["--tenant", "acme", "--type", "crawl", "--status", "running", "--yes"]
        assert run(*args) == f"230 runs are cancelled.\n{RECORD}"
        assert set(statuses(*wanted)) == {"cancelled"}
        assert statuses(*others) == before
        assert run(*args) == "0 runs are cancelled.\n"
        record = Cancellation.objects.get()
        assert record.tenant == "acme"
        assert record.selection == {
            "filter": {"status": ["running"], "tenant": "acme", "type": "crawl"}
        }

    def test_statuses_add_up(self) -> None:
        runs = [make_run("queued"), make_run("paused"), make_run("running")]
        run("--status", "queued", "--status", "paused", "--yes")
        assert statuses(*runs) == ["cancelled", "cancelled", "running"]

    def test_each_filter(self) -> None:
        hour = timedelta(hours=1)
        now = timezone.now()
        top = make_run("running", title="Crawl", started_at=now - 3 * hour)
        child = top.create_child(backend="rq", metadata={"shop": "acme", "page": 7})
        below = child.create_child(metadata={"shop": "7", "page": "7", "done": False})
        RUN._base_manager.filter(pk=top.pk).update(created_at=now - 5 * hour)
        for args, expected in [
            (["--parent", top.run_id], [child]),
            (["--ancestor", top.run_id], [child, below]),
            (["--backend", "rq"], [child]),
            (["--title", "Crawl"], [top]),
            (["--created-before", "2h"], [top]),
            (["--created-before", (now - 6 * hour).isoformat()], []),
            (["--created-after", "120m"], [child, below]),
            (["--started-before", "2h"], [top]),
            (["--started-after", "1d"], [top]),
            (["--metadata", "shop=acme"], [child]),
            (["--metadata", "page=7"], [child]),
            (["--metadata", 'page="7"'], [below]),
            (["--metadata", "done=false", "--metadata", "shop=8"], []),
            (["--metadata", "done=false", "--metadata", 'shop="7"'], [below]),
        ]:
            shown = json.loads(run(*args, "--dry-run", "--json"))
            assert set(shown["sample"]) == set(ids(expected)), args
            assert (shown["total"], shown["cancelled_count"]) == (len(expected),) * 2
        run("--created-after", "2h", "--metadata", "page=7", "--backend", "rq", "--yes")
        selection = Cancellation.objects.get().selection or {}
        since = selection["filter"].pop("created_after")
        assert selection == {"filter": {"backend": "rq", "metadata": {"page": 7}}}
        assert abs(datetime.fromisoformat(since) - (now - 2 * hour)) < hour

    def test_dry_run(self) -> None:
        make_runs(205, title="Nightly")
        out = run("--status", "queued", "--dry-run").splitlines()
        assert out[-2:] == ["  …", "205 runs would be cancelled, and everything below them."]
        assert len(out) == 7
        assert out[0].endswith("  Nightly")
        assert statuses(RUN._base_manager.latest("pk")) == ["queued"]

    def test_dry_run_of_few(self) -> None:
        job = make_run("running", title="Evil\x1b[2J")
        job.create_child()
        assert run("--status", "running", "--dry-run") == (
            f"  {job.run_id}  Evil\\x1b[2J\n1 run would be cancelled, and 1 below it.\n"
        )
        shown = json.loads(run("--status", "running", "--dry-run", "--json"))
        assert shown == {
            "total": 1,
            "is_capped": False,
            "cancelled_count": 1,
            "already_count": 0,
            "failed_count": 0,
            "below": 1,
            "below_failed": None,
            "forced": 0,
            "sample": {job.run_id: "Evil\x1b[2J"},
            "failed": {},
            "cancellation": None,
            "state": None,
            "dry_run": True,
        }

    def test_dry_run_of_more_than_are_counted(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(bulk, "PREVIEW_LIMIT", 3)
        make_runs(4)
        out = run("--status", "queued", "--dry-run")
        assert out.endswith("3+ runs would be cancelled, and everything below them.\n")
        shown = json.loads(run("--status", "queued", "--dry-run", "--json"))
        assert (shown["total"], shown["is_capped"], shown["below"]) == (3, True, None)
        assert run("--status", "queued", "--yes").startswith("4 runs are cancelled.\n")

    def test_json__no_list_of_a_million_ids(self, monkeypatch: Any) -> None:
        """A run that ends between the selection and its turn is a failure."""
        monkeypatch.setattr(reports, "MAX_FAILED", 1)
        runs = sorted(make_runs(150), key=attrgetter("pk"))

        def end(number: int) -> None:
            if number == 2:
                RUN._base_manager.filter(pk__in=[run.pk for run in runs[-2:]]).update(
                    status="completed"
                )

        with before_each(connection.ops.quote_name("next_attempt_at"), end):
            status, out, message = failing("--status", "queued", "--yes", "--json")
        shown = json.loads(out)
        assert (status, message) == (1, "2 of 150 runs are not cancelled.")
        assert (shown["cancelled_count"], shown["failed_count"]) == (148, 2)
        assert shown["failed"] == {runs[-2].run_id: "already_finished"}
        assert "cancelled" not in shown

    def test_runs_of_a_host_whose_clock_is_ahead_were_meant(self) -> None:
        runs = make_runs(2, created_at=timezone.now() + timedelta(minutes=10))
        run("--status", "queued", "--yes")
        assert statuses(*runs) == ["cancelled", "cancelled"]
