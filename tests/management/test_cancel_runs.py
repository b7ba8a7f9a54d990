"""``manage.py cancel_runs``, called from Python."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone

from django_run_cancel.cancellation import (
    abort_bulk_cancellation,
    advance_bulk_cancellations,
    bulk,
    cancel_runs,
    chunks,
)
from django_run_cancel.cancellation.chunks import Pace
from django_run_cancel.management import reports
from django_run_cancel.management.commands import cancel_runs as command
from django_run_cancel.models import (
    Cancellation,
    CancellationChunk,
    CancellationItem,
    get_run_model,
)
from tests.helpers import ids, make_run, make_runs, statuses, unwritable
from tests.management.helpers import RECORD, hide_id

RUN = get_run_model()

WORKERS = "the delivery workers (manage.py deliver_cancellations)"


RETRY = "When the cause is gone, run: manage.py retry_deliveries --cancellation can_…"


@pytest.fixture(autouse=True)
def _pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each transaction cancel a hundred runs, however fast the machine is."""

    class Fixed(Pace):
        def adapt(self, count: int, seconds: float) -> None:
            pass

    monkeypatch.setattr(chunks, "_pace", Fixed())


def run(*args: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("cancel_runs", *args, stdout=out, **options)
    return out.getvalue() if "--json" in args else hide_id(out.getvalue())


def failing(*args: str, **options: Any) -> tuple[int, str, str]:
    """Return the exit status, what was printed, and the message of a call that fails."""
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("cancel_runs", *args, stdout=out, **options)
    shown = out.getvalue() if "--json" in args else hide_id(out.getvalue())
    return caught.value.returncode, shown, hide_id(str(caught.value))


@contextlib.contextmanager
def before_each(statement: str, action: Callable[[int], Any]) -> Iterator[None]:
    """Call a function with a number before each statement that contains this."""
    numbers = iter(range(1, 1_000_000))

    def wrap(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if statement in sql:
            action(next(numbers))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrap):
        yield


CANCELLING = "INSERT INTO " + connection.ops.quote_name(CancellationItem._meta.db_table)
"""One statement for each hundred runs: see ``_pace``."""


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


@pytest.mark.django_db(transaction=True)
class TestRefusedRows:
    def test_run_asked_for(self) -> None:
        runs = make_runs(3)
        with unwritable(runs[1]):
            status, out, message = failing("--status", "queued", "--yes")
            shown = json.loads(failing(*ids(runs), "--yes", "--json")[1])
        assert status == 1
        assert message == f"1 of 3 runs is not cancelled. {RETRY}"
        assert out == f"{runs[1].run_id}: refused\n2 runs are cancelled.\n{RECORD}"
        assert statuses(*runs) == ["cancelled", "queued", "cancelled"]
        assert shown["failed"] == {runs[1].run_id: "refused"}
        assert shown["state"] == "failed"

    def test_run_below(self, settings: Any) -> None:
        settings.RUN_CANCEL_MAX_TREE = 0  # what is below is cancelled afterwards
        job = make_run("running")
        children = [job.create_child() for _ in range(3)]
        with unwritable(children[1]):
            status, out, message = failing(job.run_id, "--yes")
        assert out == (
            f"1 run is cancelled, and 2 below it.\n1 run below it could not be changed.\n{RECORD}"
        )
        assert status == 1
        assert message == f"1 run below could not be changed. {RETRY}"


@pytest.mark.django_db(transaction=True)
class TestDatabaseThatGivesUp:
    def dying(self, after: int) -> Any:
        """Let the database be away after so many transactions."""
        begun: list[str] = []

        def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if CANCELLING in sql:
                begun.append(sql)
            if len(begun) > after:
                raise OperationalError("it is away")
            return execute(sql, params, many, context)

        return connection.execute_wrapper(fail)

    def test_says_who_goes_on(self) -> None:
        runs = make_runs(250)
        with self.dying(1):
            status, out, message = failing(*ids(runs), "--yes")
        assert (status, out) == (1, RECORD)
        assert message == (f"The database failed: it is away: can_… is left to {WORKERS}.")
        assert statuses(*runs).count("cancelled") == 100
        advance_bulk_cancellations(10)
        assert statuses(*runs).count("cancelled") == 250

    def test_json(self) -> None:
        make_runs(250)
        with self.dying(1):
            _, out, _ = failing("--status", "queued", "--yes", "--json")
        shown = json.loads(out)
        assert (shown["total"], shown["cancelled_count"]) == (250, None)
        assert shown["cancellation"] == Cancellation.objects.get().cancellation_id

    @pytest.mark.parametrize("statement", ["COUNT(*)", "INSERT INTO"])
    def test_before_anything_is_recorded(self, statement: str) -> None:
        runs = make_runs(3)

        def fail(number: int) -> None:
            raise OperationalError("it is away")

        with before_each(statement, fail):
            status, out, message = failing("--status", "queued", "--yes")
        assert (status, out) == (1, "")
        assert message.startswith("The database failed: it is away")
        assert statuses(*runs) == ["queued"] * 3
        assert not Cancellation.objects.exists()

    def test_for_a_moment__goes_on(self, caplog: pytest.LogCaptureFixture) -> None:
        make_runs(3)

        def fail(number: int) -> None:
            if number == 1:
                raise OperationalError("it is away")

        with before_each(CANCELLING, fail):
            assert run("--status", "queued", "--yes").startswith("3 runs are cancelled.")
        assert "cannot go on: " in caplog.text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Impatient(Terminal):
    def readline(self, *args: Any) -> str:
        raise KeyboardInterrupt


@pytest.mark.django_db
class TestQuestion:
    @pytest.mark.parametrize(
        ("answer", "status"),
        [("y\n", "cancelled"), ("YES\n", "cancelled"), ("n\n", "queued"), ("", "queued")],
    )
    def test_answers(self, answer: str, status: str, monkeypatch: Any) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        job, err = make_run(title="Crawl"), io.StringIO()
        refused = pytest.raises(CommandError, match="Nothing has been cancelled")
        with refused if status == "queued" else contextlib.nullcontext():
            call_command("cancel_runs", job.run_id, stdout=io.StringIO(), stderr=err)
        assert err.getvalue().startswith(
            f"  {job.run_id}  Crawl\nCancel 1 run and everything below it? [y/N] "
        )
        assert statuses(job) == [status]

    def test_of_many(self, monkeypatch: Any) -> None:
        monkeypatch.setattr("sys.stdin", Terminal("n\n"))
        monkeypatch.setattr(bulk, "PREVIEW_LIMIT", 6)
        runs, err = sorted(make_runs(7), key=attrgetter("pk")), io.StringIO()
        failing("--status", "queued", stderr=err)
        lines = err.getvalue().splitlines()
        assert lines == [
            *(f"  {run_id}" for run_id in ids(runs)[:5]),
            "  …",
            "Cancel 6+ runs and everything below them? [y/N] ",
        ]


@pytest.mark.django_db
class TestInterrupts:
    """Signals that arrive in the first of three transactions."""

    def interrupt(self, *numbers: int) -> Any:
        return before_each(
            CANCELLING, lambda n: [signal.raise_signal(each) for each in numbers if n == 1]
        )

    def test_off_a_terminal__left_to_the_workers(self) -> None:
        runs = make_runs(250)
        with self.interrupt(signal.SIGINT):
            status, out, message = failing(*ids(runs), "--yes")
        assert (status, out) == (130, f"100 runs are cancelled.\n{RECORD}")
        assert message == f"Interrupted: 150 of 250 runs are left to {WORKERS}."
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        advance_bulk_cancellations(10)
        assert set(statuses(*runs)) == {"cancelled"}

    @pytest.mark.parametrize(
        ("answer", "message", "state"),
        [
            ("y\n", "150 of 250 runs stay as they are.", "aborted"),
            ("n\n", f"150 of 250 runs are left to {WORKERS}.", "running"),
            ("", f"150 of 250 runs are left to {WORKERS}.", "running"),
        ],
    )
    def test_on_a_terminal__asks(
        self, answer: str, message: str, state: str, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        make_runs(250)
        err = io.StringIO()
        with self.interrupt(signal.SIGINT):
            status, out, said = failing("--status", "queued", "--yes", "--json", stderr=err)
        assert (status, said) == (130, f"Interrupted: {message}")
        assert "Abort the rest, 150 runs? Otherwise the delivery workers cancel it. [y/N] " in (
            err.getvalue()
        )
        shown = json.loads(out)
        assert (shown["state"], shown["cancelled_count"]) == (state, 100)
        assert Cancellation.objects.get().state == state

    @pytest.mark.django_db(transaction=True)
    def test_twice__at_once(self) -> None:
        runs = make_runs(150)
        with self.interrupt(signal.SIGINT, signal.SIGINT):
            status, out, message = failing("--status", "queued", "--yes")
        assert (status, out) == (130, f"0 runs are cancelled.\n{RECORD}")
        assert message == f"Interrupted: 150 of 150 runs are left to {WORKERS}."
        assert statuses(*runs) == ["queued"] * 150
        advance_bulk_cancellations(10)
        assert statuses(*runs) == ["cancelled"] * 150

    def test_at_the_first_question(self, monkeypatch: Any) -> None:
        monkeypatch.setattr("sys.stdin", Impatient())
        job = make_run()
        assert failing(job.run_id) == (130, "", "Nothing has been cancelled.")
        assert not Cancellation.objects.exists()

    def test_once_more_at_the_question(self, monkeypatch: Any) -> None:
        monkeypatch.setattr("sys.stdin", Impatient())
        make_runs(250)
        with self.interrupt(signal.SIGINT):
            status, _, message = failing("--status", "queued", "--yes")
        assert (status, message) == (
            130,
            f"Interrupted: 150 of 250 runs are left to {WORKERS}.",
        )

    @pytest.mark.django_db(transaction=True)
    def test_database_that_gives_up_when_it_is_to_abort(self, monkeypatch: Any) -> None:
        class Unplugging(Terminal):
            def readline(self, *args: Any) -> str:
                is_away.append(True)
                return "y\n"

        is_away: list[bool] = []
        monkeypatch.setattr("sys.stdin", Unplugging())

        def fail(number: int) -> None:
            if is_away:
                raise OperationalError("it is away")

        make_runs(250)
        with self.interrupt(signal.SIGINT), before_each("", fail):
            status, out, message = failing("--status", "queued", "--yes")
        assert (status, out) == (130, RECORD)
        assert message == f"The database failed: it is away: can_… is left to {WORKERS}."
        assert Cancellation.objects.get().state == "running"

    def test_sigterm__does_not_ask(self, monkeypatch: Any) -> None:
        monkeypatch.setattr("sys.stdin", Terminal("y\n"))
        make_runs(250)
        with self.interrupt(signal.SIGTERM):
            status, _, message = failing("--status", "queued", "--yes")
        assert (status, message) == (143, f"Interrupted: 150 of 250 runs are left to {WORKERS}.")

    def test_in_the_last_transaction__is_done(self) -> None:
        make_runs(50)
        with self.interrupt(signal.SIGINT):
            assert run("--status", "queued", "--yes") == f"50 runs are cancelled.\n{RECORD}"

    def test_only_what_is_below_is_left(self, settings: Any, monkeypatch: Any) -> None:
        settings.RUN_CANCEL_MAX_TREE = 0
        monkeypatch.setattr("sys.stdin", Terminal("y\n"))
        job = make_run("running")
        child = job.create_child()
        with self.interrupt(signal.SIGINT):
            status, out, message = failing(job.run_id, "--yes")
        assert (status, out) == (130, f"1 run is cancelled.\n{RECORD}")
        assert message == f"Interrupted: the runs below these are left to {WORKERS}."
        assert statuses(child) == ["created"]

    @pytest.mark.django_db(transaction=True)
    def test_twice_while_it_is_recorded__nothing_is_cancelled(self) -> None:
        runs = make_runs(3)

        def interrupt(number: int) -> None:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)

        with before_each(CancellationChunk._meta.db_table, interrupt):
            status, out, message = failing("--status", "queued", "--yes")
        assert (status, out) == (130, "")
        assert message == "Interrupted: nothing has been cancelled."
        assert statuses(*runs) == ["queued"] * 3


@pytest.mark.django_db
def test_aborted_by_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first transaction and the second."""
    runs = make_runs(250)
    real = chunks.advance_chunk

    def advance_chunk(pk: int) -> int:
        if "cancelled" in statuses(*runs):
            abort_bulk_cancellation(Cancellation.objects.get())
        return real(pk)

    monkeypatch.setattr(chunks, "advance_chunk", advance_chunk)
    status, out, message = failing(*ids(runs), "--yes")
    assert (status, out) == (1, f"100 runs are cancelled.\n{RECORD}")
    assert message == "Aborted: 150 of 250 runs stay as they are."
    assert statuses(*runs).count("cancelled") == 100
