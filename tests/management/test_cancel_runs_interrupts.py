"""The questions of ``manage.py cancel_runs`` on a terminal, and what Ctrl+C and SIGTERM do."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from operator import attrgetter
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError

from django_run_cancel.cancellation import advance_bulk_cancellations, bulk
from django_run_cancel.models import Cancellation, CancellationChunk
from tests.helpers import ids, make_run, make_runs, statuses
from tests.management.helpers import CANCELLING, RECORD, WORKERS, before_each, failing, run

pytestmark = pytest.mark.usefixtures("fixed_pace")


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
