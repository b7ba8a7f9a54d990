"""SIGKILL before every statement and every commit of a request, a delivery step and an execution.

Nothing committed is lost, nothing uncommitted was answered, and the next one goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from django_run_cancel.backends import BaseBackend, StopOutcome, StopRequest, TaskCall
from django_run_cancel.cancellation import (
    advance_bulk_cancellations,
    cancel_runs,
    chunks,
    start_bulk_cancellation,
)
from django_run_cancel.delivery import deliver_due, dispatch
from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.execution import execution
from django_run_cancel.models import AbstractRun, get_run_model
from django_run_cancel.testing import DummyBackend, cancel_now
from tests.delivery.helpers import pass_time
from tests.faults.helpers import TwoAtATime, book, booked, empty_tables, finish_everything
from tests.faults.invariants import assert_rows_sound
from tests.faults.processes import kills
from tests.helpers import ApiClient, ids, make_run, statuses

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


class Noting(BaseBackend):
    """Notes in a file what it was told, which survives the process, and has stopped it."""

    can_stop_running = True
    can_force = True
    required_options = frozenset({"FILE"})

    def _note(self, word: str, external_id: str) -> None:
        with Path(self.options["FILE"]).open("a") as file:
            file.write(f"{word} {external_id}\n")

    def check_call(self, call: TaskCall) -> None:
        """Accept any call."""

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008
        self._note("dispatch", run.external_id)

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        for request in requests:
            self._note("stop", request.external_id)
        return dict.fromkeys((each.external_id for each in requests), StopOutcome.STOPPED)


@pytest.fixture
def notes(settings: Any, tmp_path: Path) -> Path:
    settings.RUN_CANCEL_BACKENDS = {
        **settings.RUN_CANCEL_BACKENDS,
        "noting": {
            "BACKEND": f"{Noting.__module__}.{Noting.__name__}",
            "OPTIONS": {"FILE": str(tmp_path / "notes")},
        },
    }
    settings.RUN_CANCEL_HANDLERS = [f"{book.__module__}.{book.__name__}"]
    return tmp_path / "notes"


class Families:
    """Runs that are made anew for every kill: two with a child each, one alone, one finished."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self.finished: Any = None

    def prepare(self) -> None:
        empty_tables()
        parents = [make_run("running", external_id=f"job {n}") for n in range(2)]
        children = [run.create_child(status="queued") for run in parents]
        self.all = [*parents, *children, make_run("queued", external_id="")]
        self.finished = make_run("running")
        self.finished.mark_completed()

    @property
    def asked(self) -> list[str]:
        return ids([*self.all[:2], self.all[-1], self.finished])

    def are_cancelled(self) -> bool:
        """Tell whether all are cancelled, or none is; nothing in between may be."""
        now = statuses(*self.all)
        assert now in (
            ["cancelled"] * len(self.all),
            ["running", "running", "queued", "queued", "queued"],
        )
        return now[0] == "cancelled"


def test_request(api: ApiClient, dummy: DummyBackend) -> None:
    families = Families()

    def request() -> Any:
        response = api.cancel(families.asked)
        return [response.status_code, response.json()]

    true = lambda: [200, {"cancelled": families.asked[:3], "failed": families.asked[3:]}]  # noqa: E731
    seen = set()
    for ended in kills(families.prepare, request):
        done = families.are_cancelled()
        assert_rows_sound()
        assert done or ended.answer is None, "It was answered and is lost."
        seen.add((done, ended.is_killed))
        assert ended.answer in (None, true())
        assert request() == true()
        finish_everything()
        assert_rows_sound(everything_done=True)
    # Also between the commit and the answer.
    assert seen == {(False, True), (True, True), (True, False)}


def test_delivery_step(notes: Path) -> None:
    """Each executor is told at least once, each handler has its effect exactly once."""
    runs: list[Any] = []

    def prepare() -> None:
        notes.unlink(missing_ok=True)
        empty_tables()
        runs[:] = [
            make_run("running", backend="noting", external_id=f"job {number}")
            for number in range(2)
        ]
        cancel_runs(ids(runs), requested_by="tests")

    for _ in kills(prepare, lambda: bool(deliver_due())):
        assert_rows_sound()
        finish_everything()
        assert_rows_sound(everything_done=True)
        told = set(notes.read_text().splitlines())
        assert told == {"stop job 0", "stop job 1"}
        assert sorted(booked()) == sorted(ids(runs))
        for run in runs:
            run.refresh_from_db()
            assert run.stop_state == "killed"


def test_bulk_cancellation(dummy: DummyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed stays, and the next worker cancels the rest."""
    monkeypatch.setattr(chunks, "_pace", TwoAtATime())
    families = Families()
    record: list[Any] = []

    def prepare() -> None:
        families.prepare()
        runs = get_run_model()._base_manager.all()
        bulk = start_bulk_cancellation(runs, run_ids=families.asked, requested_by="tests")
        record[:] = [bulk.cancellation]

    seen = set()
    for _ in kills(prepare, lambda: advance_bulk_cancellations(60)):
        assert_rows_sound()
        seen.add(statuses(*families.all).count("cancelled"))
        finish_everything()
        assert_rows_sound(everything_done=True)
        assert families.are_cancelled()
        record[0].refresh_from_db()
        assert (record[0].cancelled_count, record[0].cascaded_count) == (3, 2)
    # A family or two at a time, never half of one.
    assert seen == {0, 4, 5}


def test_start_of_a_bulk_cancellation(api: ApiClient, dummy: DummyBackend) -> None:
    families = Families()

    def request() -> Any:
        response = api.send("/v1/cancellations", {"run_ids": families.asked})
        return [response.status_code, response.json()["total_count"]]

    for ended in kills(families.prepare, request):
        assert_rows_sound()
        finish_everything()
        assert_rows_sound(everything_done=True)
        assert families.are_cancelled() or ended.answer is None


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["", "cancelled"])
def test_execution(dummy: DummyBackend, is_cancelled: bool) -> None:
    """The next execution goes on where that is due, and never with a cancelled run."""
    runs: list[Any] = []

    def prepare() -> None:
        empty_tables()
        runs[:] = [make_run()]

    def work() -> str:
        with suppress(RunCancelled), execution(runs[0].run_id, take_over=True) as executed:
            executed.run.create_child(status="created", backend="", external_id="")
            if is_cancelled:
                cancel_now(executed.run)
            executed.checkpoint()
        return str(statuses(runs[0])[0])

    seen = set()
    for ended in kills(prepare, work):
        assert_rows_sound()
        (before,) = statuses(runs[0])
        seen.add(before)
        if before in {"cancelled", "completed"}:
            error = RunCancelled if before == "cancelled" else TransitionNotAllowed
            with pytest.raises(error), execution(runs[0].run_id, take_over=True):
                pytest.fail("It started again.")
        else:
            assert ended.answer is None
            assert work() == ("cancelled" if is_cancelled else "completed")
        finish_everything()
        assert_rows_sound(everything_done=True)
    assert seen == {"queued", "running", "cancelled" if is_cancelled else "completed"}


def test_dispatch(notes: Path) -> None:
    """The executor gets the run at least once, if and only if it is queued."""
    runs: list[Any] = []

    def prepare() -> None:
        notes.unlink(missing_ok=True)
        empty_tables()
        runs[:] = [make_run("created", external_id="")]

    def hand_over() -> None:
        dispatch(runs[0], "noting")

    for _ in kills(prepare, hand_over):
        assert_rows_sound()
        runs[0].refresh_from_db()
        if runs[0].status == "queued":
            due = timezone.now() - timedelta(seconds=1)
            later = runs[0]._rows().filter(dispatch_due_at__isnull=False)
            again = later.update(dispatch_due_at=due)
            pass_time(0)
            assert deliver_due().dispatched == again
            assert set(notes.read_text().splitlines()) == {f"dispatch {runs[0].external_id}"}
        else:
            assert not notes.exists()
