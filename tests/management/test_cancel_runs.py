"""``manage.py cancel_runs`` with ids, called from Python; its arguments, and ``--no-wait``."""

from __future__ import annotations

import getpass
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError

from django_run_cancel.cancellation import advance_bulk_cancellations, cancel_runs
from django_run_cancel.management.commands import cancel_runs as command
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from tests.helpers import ids, make_run, make_runs, statuses
from tests.management.helpers import RECORD, WORKERS, failing, run

pytestmark = pytest.mark.usefixtures("fixed_pace")

RUN = get_run_model()


@pytest.mark.django_db
class TestByIds:
    def test_any_number_in_one_record(self) -> None:
        runs = make_runs(250)
        assert run(*ids(runs), "--yes") == f"250 runs are cancelled.\n{RECORD}"
        assert set(statuses(*runs)) == {"cancelled"}
        record = Cancellation.objects.get()
        assert (record.state, record.total_count, record.cancelled_count) == ("completed", 250, 250)
        assert record.selection == {"run_ids": 250}

    def test_record(self) -> None:
        job = make_run("running", tenant="acme")
        job.create_child()
        assert run(job.run_id, "--yes", "--reason", "Disk full") == (
            f"1 run is cancelled, and 1 below it.\n{RECORD}"
        )
        record = Cancellation.objects.get()
        assert (record.source, record.reason, record.tenant) == ("command", "Disk full", "acme")
        assert record.requested_by == f"{getpass.getuser()}@{socket.gethostname()}"
        assert record.ip_address is None
        other = make_run(tenant="globex")
        run(job.run_id, other.run_id, "--yes", "--requested-by", "night watch", "--force")
        again = Cancellation.objects.latest("pk")
        assert (again.requested_by, again.force, record.force) == ("night watch", True, False)
        assert again.tenant is None

    def test_force_of_what_is_still_stopping(self) -> None:
        stopping, other, waiting = make_run("running"), make_run("running"), make_run()
        below = stopping.create_child(status="running", backend="dummy", external_id="job")
        run(*ids([stopping, other]), "--yes")
        args = [stopping.run_id, waiting.run_id, "--force"]
        assert run(*args, "--dry-run") == (
            "2 runs would be cancelled.\n"
            "1 of these had been cancelled before.\n"
            "2 runs were still stopping and would be killed, if their executors can.\n"
        )
        assert not CancellationItem.objects.filter(force=True, via="requested").exists()
        assert (
            run(*args, "--yes")
            == (
                "2 runs are cancelled.\n"
                "1 of these had been cancelled before.\n"
                "2 runs were still stopping and will be killed, if their executors can.\n"
            )
            + RECORD
        )
        first = CancellationItem.objects.filter(cancellation=Cancellation.objects.earliest("pk"))
        assert dict(first.values_list("run_id", "force")) == {
            stopping.run_id: True,
            below.run_id: True,
            other.run_id: False,
        }
        shown = json.loads(run(*ids([stopping, other]), "--force", "--json", "--yes"))
        assert (shown["forced"], shown["below"], shown["already_count"]) == (3, 0, 2)
        RUN._base_manager.filter(pk=below.pk).update(stop_state="killed", stopped_at=None)
        RUN._base_manager.filter(pk=other.pk).update(external_id="")
        assert "1 run was still stopping and will be killed, if its executor can.\n" in run(
            *ids([stopping, other]), "--force", "--yes"
        )

    def test_force_by_filters__takes_active_runs(self) -> None:
        stopping, active = make_run("running", tenant="a"), make_run("running", tenant="a")
        run(stopping.run_id, "--yes")
        assert run("--tenant", "a", "--force", "--yes") == f"1 run is cancelled.\n{RECORD}"
        by_run = dict(CancellationItem.objects.values_list("run_id", "force"))
        assert by_run == {stopping.run_id: False, active.run_id: True}

    def test_file_and_arguments_together_once_each(self, tmp_path: Path) -> None:
        a, b, c = runs = make_runs(3)
        file = tmp_path / "ids"
        file.write_bytes(f"\ufeff{a.run_id}\r\n {b.run_id}\t\n{a.run_id}\n\n".encode())
        run(c.run_id, c.run_id, "--file", str(file), "--yes")
        assert statuses(*runs) == ["cancelled"] * 3
        assert Cancellation.objects.get().total_count == 3

    def test_standard_input(self, monkeypatch: Any) -> None:
        runs = make_runs(2)
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(ids(runs))))
        run("-", "--yes")
        assert statuses(*runs) == ["cancelled"] * 2
        monkeypatch.setattr("sys.stdin", None)  # closed
        assert run("-", "--yes") == "0 runs are cancelled.\n"
        assert json.loads(run("-", "--json"))["cancelled"] == []
        assert failing("tsk_1")[0] == 2
        assert Cancellation.objects.count() == 1

    def test_some_failed(self) -> None:
        done, job = make_run("completed"), make_run()
        status, out, message = failing(done.run_id, job.run_id, "unknown", "--yes")
        assert status == 1
        assert message == "2 of 3 runs are not cancelled."
        assert out == (
            f"{done.run_id}: already_finished\nunknown: not_found\n1 run is cancelled.\n{RECORD}"
        )
        assert statuses(job) == ["cancelled"]

    def test_many_failed__people_are_told_of_twenty(self) -> None:
        unknown = [f"tsk_{number}" for number in range(1_025)]
        status, out, message = failing(*unknown, "--yes")
        assert (status, message) == (1, "1,025 of 1,025 runs are not cancelled.")
        assert out.splitlines() == [
            *(f"tsk_{number}: not_found" for number in range(20)),
            "… and 1,005 more that are not cancelled",
            "0 runs are cancelled.",
            RECORD.strip(),
        ]
        _, out, _ = failing(*unknown, "--yes", "--json")
        assert len(json.loads(out)["failed"]) == 1_025

    def test_filters_narrow_what_is_named(self) -> None:
        ours, theirs = make_run(tenant="ours"), make_run(tenant="theirs")
        status, out, _ = failing(ours.run_id, theirs.run_id, "--tenant", "ours", "--yes")
        assert (status, out.splitlines()[0]) == (1, f"{theirs.run_id}: not_found")
        assert statuses(ours, theirs) == ["cancelled", "queued"]
        assert Cancellation.objects.get().selection == {
            "filter": {"tenant": "ours"},
            "run_ids": 2,
        }

    def test_status_of_what_is_named(self) -> None:
        queued, running = make_run(), make_run("running")
        for _ in range(2):  # asking again is no failure
            status, out, _ = failing(queued.run_id, running.run_id, "--status", "queued", "--yes")
            assert (status, out.splitlines()[0]) == (1, f"{running.run_id}: not_found")
        assert run(queued.run_id, "--status", "queued", "--yes") == (
            f"1 run is cancelled.\nIt had been cancelled before.\n{RECORD}"
        )
        assert statuses(queued, running) == ["cancelled", "running"]

    def test_children_that_are_named_too_count_once(self) -> None:
        parent = make_run("running")
        children = [parent.create_child() for _ in range(150)]
        named = ids([parent, *children[:120]])
        expected = "121 runs {} cancelled, and 30 below them.\n"
        assert run(*named, "--dry-run") == expected.format("would be")
        assert run(*named, "--yes") == expected.format("are") + RECORD
        # The second transaction has found those cancelled that the first had.
        assert Cancellation.objects.get().already_count == 21

    def test_dry_run(self) -> None:
        job, done = make_run("running"), make_run("failed")
        job.create_child()
        assert run(job.run_id, "--dry-run") == "1 run would be cancelled, and 1 below it.\n"
        assert failing(done.run_id, "--dry-run")[0] == 1
        assert statuses(job) == ["running"]
        assert not Cancellation.objects.exists()

    def test_dry_run_of_a_tree_too_large_to_count(self, settings: Any) -> None:
        settings.RUN_CANCEL_MAX_TREE = 0
        job = make_run("running")
        job.create_child()
        assert run(job.run_id, "--dry-run") == (
            "1 run would be cancelled, and everything below it.\n"
        )

    def test_json(self) -> None:
        job, done = make_run(), make_run("failed")
        _, out, _ = failing(job.run_id, done.run_id, "--json", "--yes")
        assert json.loads(out) == {
            "total": 2,
            "is_capped": False,
            "cancelled_count": 1,
            "already_count": 0,
            "failed_count": 1,
            "below": 0,
            "below_failed": 0,
            "forced": 0,
            "cancelled": [job.run_id],
            "failed": {done.run_id: "already_finished"},
            "cancellation": Cancellation.objects.get().cancellation_id,
            "state": "completed",
            "dry_run": False,
        }

    def test_again(self) -> None:
        job = make_run()
        cancel_runs([job.run_id], requested_by="x")
        assert run(job.run_id, "--yes") == (
            f"1 run is cancelled.\nIt had been cancelled before.\n{RECORD}"
        )


@pytest.mark.django_db
class TestUsage:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "Give run ids, or select runs with --status, --tenant, --type or another filter."),
            (["tsk_1"], "No terminal to confirm on; add --yes."),
            (["-"], "add --yes"),
            (["--file", "/nowhere/ids", "--yes"], "Cannot read the ids: "),
            (["--tenant", "", "--yes"], "--tenant must be text of 1 to 255 characters"),
            (["tsk_1", "--type", " ", "--yes"], "--type must be text of 1 to 255 characters"),
            (["tsk_1", "--tenant", "\udcff", "--yes"], "--tenant must be text"),
            (["--parent", "tsk_1", "--yes"], "--parent: there is no run with the id 'tsk_1'."),
            (["--ancestor", "tsk_1", "--yes"], "--ancestor: there is no run with the id 'tsk_1'."),
            (
                ["--metadata", "a=1", "--metadata", "a=2", "--yes"],
                "--metadata names 'a' more than once.",
            ),
            (["tsk_1", "--yes", "--reason", "x" * 2001], "reason must be text of at most 2000"),
            (["tsk_1", "--yes", "--requested-by", " "], "requested_by must be text of 1 to 255"),
        ],
    )
    def test_wrong(self, args: list[str], message: str, monkeypatch: Any) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("tsk_1"))
        status, _, said = failing(*args)
        assert status == 2
        assert message in said
        assert not Cancellation.objects.exists()

    @pytest.mark.parametrize("wrong", ["runing", "completed", ""])
    def test_wrong_status(self, wrong: str) -> None:
        expected = f"invalid choice: {wrong!r} (choose from created, queued, running, paused)"
        with pytest.raises(CommandError) as raised:
            run(f"--status={wrong}")
        assert expected in str(raised.value)

    def test_ids_that_no_run_can_have(self, tmp_path: Path) -> None:
        file = tmp_path / "ids"
        file.write_bytes(b"\xff\xfe\n\0\n" + b"x" * 5000)
        status, out, message = failing("\udcff", "--file", str(file), "--yes")
        assert (status, message) == (1, "4 of 4 runs are not cancelled.")
        assert "\\udcff…: not_found" in out

    def test_nobody_known(self, monkeypatch: Any) -> None:
        for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a number without a name
        monkeypatch.delenv("SUDO_USER", raising=False)
        assert command.who() == f"uid {os.getuid()}@{socket.gethostname()}"
        monkeypatch.setenv("SUDO_USER", "ann")
        assert command.who() == f"ann as uid {os.getuid()}@{socket.gethostname()}"


class TestNoWait:
    @pytest.mark.django_db
    def test_workers_do_it(self) -> None:
        runs = make_runs(3)
        assert run("--status", "queued", "--yes", "--no-wait") == (
            f"3 runs and everything below them will be cancelled by {WORKERS}.\n{RECORD}"
        )
        assert statuses(*runs) == ["queued"] * 3
        assert run(runs[0].run_id, "--yes", "--no-wait").startswith("1 run and everything below it")
        record = Cancellation.objects.earliest("pk")
        assert record.state == "pending"
        advance_bulk_cancellations(10)
        assert statuses(*runs) == ["cancelled"] * 3

    @pytest.mark.django_db
    def test_json(self) -> None:
        job = make_run()
        shown = json.loads(run(job.run_id, "--yes", "--no-wait", "--json"))
        assert (shown["state"], shown["total"], shown["cancelled"]) == ("pending", 1, [])
