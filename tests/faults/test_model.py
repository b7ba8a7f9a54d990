"""Hypothesis' state machine: any sequence of steps and crashes, compared with a model of the runs.

``RUN_CANCEL_FAULTS=long`` tries other and many more sequences than each run of the suite does.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from django_run_cancel.backends import StopOutcome
from django_run_cancel.cancellation import (
    abort_bulk_cancellation,
    advance_bulk_cancellations,
    cancel_runs,
    chunks,
    start_bulk_cancellation,
)
from django_run_cancel.delivery import deliver_due, dispatch, retry_deliveries
from django_run_cancel.exceptions import (
    IdempotencyKeyReused,
    RunCancelled,
    RunInProgress,
    TransitionNotAllowed,
)
from django_run_cancel.execution import execution
from django_run_cancel.models import Cancellation, get_run_model
from django_run_cancel.testing import DummyBackend, cancel_now
from tests.admin.helpers import logged_in
from tests.delivery.helpers import pass_time
from tests.faults.helpers import (
    IS_LONG,
    Crash,
    TwoAtATime,
    book,
    booked,
    crash_before,
    empty_tables,
    finish_everything,
)
from tests.faults.invariants import ACTIVE, STOPPED, assert_rows_sound
from tests.faults.model import MOVES, Expected, Model
from tests.faults.ways import FOR_KNOWN, FOR_ONE, WAYS, Clients, by_command
from tests.helpers import ApiClient, make_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("watched")]

MAX_TREE = 3
UNKNOWN = "tsk_" + "0" * 32

crashes = st.integers(4, 7) | st.integers(0, 20)
"""Before which statement the process dies, often amid a cancellation."""

NEVER = 10_000

outcomes = st.sampled_from([*StopOutcome, RuntimeError("the executor is away")])


class Retry(Exception):
    """What code raises that its executor is to try again."""


class RunsAndCrashes(RuleBasedStateMachine):
    """What hosts, clients, operators, executors and the delivery worker do, in any order."""

    clients: ClassVar[Clients]
    dummy: ClassVar[DummyBackend]

    runs = Bundle("runs")
    some_runs = st.lists(runs, min_size=1, max_size=3, unique=True)

    def __init__(self) -> None:
        super().__init__()
        empty_tables()
        self.dummy.clear()
        self.model = Model(MAX_TREE)
        self.stale: dict[str, Any] = {}
        self.answers: list[tuple[str, list[str], Any]] = []

    def run(self, run_id: str) -> Any:
        return get_run_model()._base_manager.get(run_id=run_id)

    def known(self, run: Any, parent: str | None = None) -> str:
        has_executor = bool(run.external_id)
        self.model.runs[run.run_id] = Expected(run.status, parent, has_executor=has_executor)
        self.stale[run.run_id] = self.run(run.run_id)
        return str(run.run_id)

    @initialize(target=runs)
    def begin(self) -> Any:
        parent = self.create("queued", has_executor=True)
        self.run(parent).mark_running()
        self.model.move(parent, "mark_running")
        child = self.create_child(parent, is_stale=False)
        return multiple(parent, child, self.create("created", has_executor=False))

    @rule(target=runs, status=st.sampled_from(["created", "queued"]), has_executor=st.booleans())
    def create(self, status: str, has_executor: bool) -> str:
        return self.known(make_run(status, **({} if has_executor else {"external_id": ""})))

    @rule(target=runs, parent=runs, is_stale=st.booleans())
    def create_child(self, parent: str, is_stale: bool) -> Any:
        run = self.stale[parent] if is_stale else self.run(parent)
        try:
            child = run.create_child(status="queued", backend="dummy", external_id="job")
        except RunCancelled:
            assert self.model.is_below_cancelled(parent)
            return multiple()
        assert not self.model.is_below_cancelled(parent)
        return self.known(child, parent)

    @rule(run_id=runs, how=st.sampled_from(sorted(MOVES)), is_stale=st.booleans())
    def move(self, run_id: str, how: str, is_stale: bool) -> None:
        run = self.stale[run_id] if is_stale else self.run(run_id)
        try:
            getattr(run, how)()
        except TransitionNotAllowed:
            assert not self.model.move(run_id, how)
        else:
            assert self.model.move(run_id, how)

    @rule(run_id=runs, status=st.sampled_from([*sorted(ACTIVE), "completed"]))
    def save_stale_instance(self, run_id: str, status: str) -> None:
        run = self.stale[run_id]
        run.status, run.stop_state, run.cancellation, run.title = status, "", None, "saved"
        run.save()
        assert self.run(run_id).title == "saved"

    @rule(run_id=runs, is_away=st.booleans())
    def hand_over(self, run_id: str, is_away: bool) -> None:
        run = self.run(run_id)
        self.dummy.outcome = RuntimeError("the executor is away") if is_away else StopOutcome.TOLD
        try:
            dispatch(run, "dummy")
        except TransitionNotAllowed:
            assert not self.model.move(run_id, "mark_queued")
        else:
            assert self.model.move(run_id, "mark_queued")
            self.model.runs[run_id].has_executor = True

    @rule(
        run_id=runs,
        ending=st.sampled_from(["returns", "fails", "is tried again", "is cancelled"]),
        take_over=st.booleans(),
    )
    def execute(self, run_id: str, ending: str, take_over: bool) -> None:
        expected = self.model.runs[run_id]
        startable = {"created", "queued", "paused", *(["running"] if take_over else [])}
        before = expected.status
        expected.has_started |= before in startable
        try:
            with execution(run_id, take_over=take_over, requeue_on=Retry) as executed:
                assert before in startable
                expected.status = "running"
                if ending == "is cancelled":
                    self.model.cancel([run_id])
                    expected.stop_state = "acknowledged"
                    cancel_now(executed.run)
                    executed.checkpoint()
                expected.status = {"returns": "completed", "fails": "failed"}.get(ending, "queued")
                if ending != "returns":
                    raise Retry if ending == "is tried again" else ValueError
        except (Retry, ValueError):
            assert before in startable
        except RunCancelled:
            assert "cancelled" in {before, expected.status}
        except RunInProgress:
            assert (before, take_over) == ("running", False)
        except TransitionNotAllowed:
            assert before not in {*ACTIVE, "cancelled"}

    @rule(
        run_ids=some_runs,
        way=st.sampled_from(WAYS),
        force=st.booleans(),
        has_unknown=st.booleans(),
    )
    def cancel(self, run_ids: list[str], way: Any, force: bool, has_unknown: bool) -> None:
        if has_unknown and way not in FOR_KNOWN:
            run_ids = [*run_ids, UNKNOWN]
        if way in FOR_ONE:
            run_ids = run_ids[:1]
        answer = way(self.clients, run_ids, force)
        postponed = set(self.model.postponed)
        assert answer == self.model.cancel(run_ids, force=force)
        if way is by_command:  # it goes on until the descendants are cancelled too
            for run_id in self.model.below(self.model.postponed - postponed):
                self.model.end(run_id, force=force)
            self.model.postponed = postponed

    @rule(run_ids=some_runs, way=st.sampled_from(WAYS), crash=crashes)
    def die_while_cancelling(self, run_ids: list[str], way: Any, crash: int) -> None:
        if way in FOR_ONE:
            run_ids = run_ids[:1]
        before = Cancellation.objects.count()
        with suppress(Crash), crash_before(crash):
            way(self.clients, run_ids, False)
        if way is by_command:  # which records what it is to do, and does it afterwards
            self.find_what_was_begun(run_ids)
        elif Cancellation.objects.count() > before:  # the record commits all of it
            self.model.cancel(run_ids)

    @rule(run_ids=st.lists(runs, min_size=1, max_size=2, unique=True), key=st.integers(1, 3))
    def cancel_with_a_key(self, run_ids: list[str], key: int) -> None:
        earlier = next((each for each in self.answers if each[0] == str(key)), None)
        try:
            result = cancel_runs(run_ids, requested_by="tests", idempotency_key=str(key))
        except IdempotencyKeyReused:
            assert earlier is not None
            assert earlier[1] != run_ids
            return
        answer = (result.cancelled, result.failed)
        if earlier is None:
            assert answer == self.model.cancel(run_ids)
            self.answers.append((str(key), run_ids, answer))
        else:
            assert (run_ids, answer) == earlier[1:]
            assert result.is_replay

    @rule(run_ids=st.lists(runs, max_size=3, unique=True), by_filter=st.booleans())
    def start_bulk(self, run_ids: list[str], by_filter: bool) -> None:
        rows = get_run_model()._base_manager.all()
        if by_filter:
            rows = rows.filter(status="queued")
            run_ids = [key for key, run in self.model.runs.items() if run.status == "queued"]
        asked = None if by_filter else run_ids
        record = start_bulk_cancellation(rows, run_ids=asked, requested_by="tests").cancellation
        assert record.total_count == len(run_ids)
        self.model.bulks[record.pk] = run_ids

    @precondition(lambda self: self.model.bulks)
    @rule()
    def abort_bulk(self) -> None:
        pk, run_ids = self.model.bulks.popitem()
        aborted = abort_bulk_cancellation(Cancellation.objects.get(pk=pk))
        assert aborted or not [each for each in run_ids if self.model.runs[each].status in ACTIVE]

    @rule(outcome=outcomes, crash=st.just(NEVER) | crashes, seconds=st.sampled_from([0, 31, 301]))
    def let_worker_deliver(self, outcome: Any, crash: int, seconds: int) -> None:
        pass_time(seconds)
        self.dummy.outcome = outcome
        self.work_off(deliver_due, crash)

    @rule(crash=st.just(NEVER) | crashes)
    def let_worker_advance(self, crash: int) -> None:
        self.work_off(lambda: advance_bulk_cancellations(60), crash)

    def work_off(self, action: Any, crash: int) -> None:
        retry_deliveries()
        try:
            with crash_before(crash):
                action()
        except Crash:
            self.find_what_was_begun([])
        else:
            self.model.advance()

    def find_what_was_begun(self, asked: list[str]) -> None:
        """Adopt what a process has committed before it died: only what it was to do."""
        new = Cancellation.objects.exclude(pk__in=self.model.bulks).filter(
            selection__isnull=False, state__in=["pending", "running"]
        )
        if asked:
            for pk in new.values_list("pk", flat=True):
                self.model.bulks[pk] = asked
        allowed = self.model.to_be_cancelled() | set(asked) | self.model.below(asked)
        for run_id, status in get_run_model()._base_manager.values_list("run_id", "status"):
            expected = self.model.runs.get(run_id)
            if expected is not None and status != expected.status:
                assert status == "cancelled"
                assert run_id in allowed
                self.model.end(run_id)

    @invariant()
    def rows_are_as_expected(self) -> None:
        for run_id, expected in self.model.runs.items():
            run = self.run(run_id)
            assert run.status == expected.status, run_id
            if expected.stop_state == "stopping" and run.stop_state in STOPPED - {"never_started"}:
                expected.stop_state = run.stop_state
            assert run.stop_state == expected.stop_state, run_id

    @invariant()
    def rows_are_sound(self) -> None:
        assert_rows_sound()

    def teardown(self) -> None:
        self.dummy.outcome = StopOutcome.TOLD
        finish_everything()
        self.model.advance()
        self.rows_are_as_expected()
        assert_rows_sound(everything_done=True)
        ended = {
            run.run_id
            for run in get_run_model()._base_manager.filter(status="cancelled")
            if run.stop_state in {"acknowledged", "killed"}
        }
        told = {request.run_id for request, _ in self.dummy.stopped}
        forced = {request.run_id for request, force in self.dummy.stopped if force}
        runs = self.model.runs.items()
        assert {run_id for run_id, run in runs if run.is_told} - ended <= told
        assert {run_id for run_id, run in runs if run.is_forced} - ended <= forced
        cancelled = [run_id for run_id, run in runs if run.status == "cancelled"]
        assert sorted(booked()) == sorted(cancelled)


def test_any_sequence(
    dummy: DummyBackend, api: ApiClient, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_pace", TwoAtATime())
    settings.RUN_CANCEL_MAX_TREE = MAX_TREE
    settings.RUN_CANCEL_GRACE_SECONDS = 10**7  # or all would be told by force in the end
    settings.RUN_CANCEL_HANDLERS = [f"{book.__module__}.{book.__name__}"]
    RunsAndCrashes.dummy = dummy
    RunsAndCrashes.clients = Clients(api, logged_in("chief", is_superuser=True))
    run_state_machine_as_test(RunsAndCrashes, settings=BOUNDS)


BOUNDS = settings(
    max_examples=500 if IS_LONG else 35,
    stateful_step_count=50 if IS_LONG else 25,
    derandomize=not IS_LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
