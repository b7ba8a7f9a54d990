from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from django_run_cancel.backends import TaskCall, get_backend
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import dispatch
from django_run_cancel.delivery import dispatcher as module
from django_run_cancel.delivery.dispatcher import redispatch
from django_run_cancel.exceptions import BackendError, TransitionNotAllowed, UnknownBackend
from django_run_cancel.models import get_run_model
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.helpers import IS_SQLITE, locked_elsewhere, make_run, unwritable

Capture = Callable[..., Any]


@pytest.fixture
def dummy(transactional_db: None) -> DummyBackend:
    backend = get_backend("dummy")
    assert isinstance(backend, DummyBackend)
    backend.clear()
    return backend


def created(**fields: Any) -> Any:
    return make_run(RunStatus.CREATED, backend="", external_id="", **fields)


def let_time_pass(**fields: Any) -> None:
    """Make what is due again, due now."""
    get_run_model()._default_manager.filter(dispatch_due_at__isnull=False).update(
        dispatch_due_at=timezone.now() - timedelta(seconds=1), **fields
    )


def test_dispatch__sends_after_the_commit(dummy: DummyBackend) -> None:
    run = created()
    with transaction.atomic():
        dispatch(run, "dummy")
        assert dummy.dispatched == []
        assert (run.status, run.backend) == (RunStatus.QUEUED, "dummy")
    assert dummy.dispatched == [run.external_id]
    run.refresh_from_db()
    assert run.dispatched_at > run.queued_at
    assert run.dispatch_due_at is None
    let_time_pass()
    assert redispatch() == 0


def test_dispatch__nothing_after_a_rollback(dummy: DummyBackend) -> None:
    run = created()
    with transaction.atomic():
        dispatch(run, "dummy")
        transaction.set_rollback(True)
    run.refresh_from_db()
    assert (run.status, run.external_id, dummy.dispatched) == (RunStatus.CREATED, "", [])


def test_dispatch__each_attempt_has_its_own_id(dummy: DummyBackend) -> None:
    run = created()
    dispatch(run, "dummy")
    run.mark_running()
    dispatch(run, "dummy")
    assert len(set(dummy.dispatched)) == 2


def test_dispatch__refused(dummy: DummyBackend) -> None:
    run = created()
    with pytest.raises(UnknownBackend, match="'nowhere'"):
        dispatch(run, "nowhere")
    cancel_runs([run.run_id], requested_by="tests")
    with pytest.raises(TransitionNotAllowed, match="is cancelled"):
        dispatch(run, "dummy")
    finished = make_run(RunStatus.COMPLETED)
    with pytest.raises(TransitionNotAllowed, match="is completed"):
        dispatch(finished, "dummy")
    assert dummy.dispatched == []


def test_dispatch__arguments(dummy: DummyBackend) -> None:
    run = created()
    dispatch(run, "dummy", task="crawl", args=("a", 1), kwargs={"depth": 2}, countdown=3)
    assert dummy.calls == [TaskCall("crawl", ["a", 1], {"depth": 2}, {"countdown": 3})]
    run.refresh_from_db()
    assert run.dispatch_call is None  # not kept once the executor has it


def test_dispatch__arguments_are_kept_until_it_succeeds(dummy: DummyBackend) -> None:
    run = created()
    dummy.outcome = BackendError("broker is away")
    dispatch(run, "dummy", args=[{"url": "\\u0000 é"}])
    run.save()
    dummy.clear()
    let_time_pass()
    assert redispatch() == 1
    assert dummy.calls == [TaskCall(None, [{"url": "\\u0000 é"}], {}, {})]
    run.refresh_from_db()
    assert run.dispatch_call is None


def test_dispatch__arguments_go_with_a_run_that_ends_undispatched(dummy: DummyBackend) -> None:
    run = created()
    dummy.outcome = BackendError("broker is away")
    dispatch(run, "dummy", args=["secret"])
    cancel_runs([run.run_id], requested_by="tests")
    let_time_pass()
    assert redispatch() == 0
    run.refresh_from_db()
    assert (run.dispatch_call, run.dispatch_due_at) == (None, None)


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, "\0", {"a\0": 1}, "\ud800"])
def test_dispatch__arguments_that_cannot_be_kept(dummy: DummyBackend, value: Any) -> None:
    run = created()
    with pytest.raises(TypeError, match="takes what"):
        dispatch(run, "dummy", args=[value])
    run.refresh_from_db()
    assert (run.status, dummy.dispatched) == (RunStatus.CREATED, [])


def test_dispatch__given_an_id(dummy: DummyBackend) -> None:
    with pytest.raises(TypeError, match="takes a run, not 'tsk_1'"):
        dispatch("tsk_1", "dummy")  # type: ignore[arg-type]


def test_executor_away__sent_again_under_the_same_id(
    dummy: DummyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    run = created()
    dummy.outcome = BackendError("broker is away")
    dispatch(run, "dummy")
    assert "broker is away" in caplog.text
    assert redispatch() == 0  # not due yet
    let_time_pass()
    assert redispatch() == 0
    run.refresh_from_db()
    assert (run.status, run.dispatched_at) == (RunStatus.QUEUED, None)
    assert run.dispatch_due_at > timezone.now()
    dummy.clear()
    let_time_pass()
    assert redispatch() == 1
    assert dummy.dispatched == [run.external_id]
    let_time_pass()
    assert redispatch() == 0


def test_dispatcher_killed_before_it_sent(dummy: DummyBackend, monkeypatch: Any) -> None:
    run = created()
    monkeypatch.setattr(transaction, "on_commit", lambda *args, **kwargs: None)
    dispatch(run, "dummy")
    monkeypatch.undo()
    assert redispatch() == 0  # whoever dispatches has some seconds to say so
    let_time_pass()
    assert redispatch() == 1
    assert dummy.dispatched == [run.external_id]


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.COMPLETED, RunStatus.CANCELLED])
def test_dispatcher_killed_after_it_sent__nothing_is_sent_again(
    dummy: DummyBackend, status: str
) -> None:
    run = created()
    dispatch(run, "dummy")
    past = timezone.now() - timedelta(seconds=1)
    get_run_model()._default_manager.update(status=status, dispatch_due_at=past)
    assert redispatch() == 0
    run.refresh_from_db()
    assert (run.dispatch_due_at, len(dummy.dispatched)) == (None, 1)


def test_job_that_dispatches_its_run_anew_while_it_is_handed_over(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    run = created()
    real = DummyBackend.dispatch

    def quick(self: DummyBackend, given: Any, call: TaskCall) -> None:
        real(self, given, call)
        if len(self.dispatched) == 1:
            other = get_run_model()._default_manager.get(pk=run.pk)
            other.mark_running()
            self.outcome = BackendError("broker is away")
            dispatch(other, "dummy")

    monkeypatch.setattr(DummyBackend, "dispatch", quick)
    dispatch(run, "dummy")
    run.refresh_from_db()
    assert run.dispatch_due_at is not None  # the second one is still to be handed over


def test_dead_backend__costs_some_time_and_holds_nobody_up(
    dummy: DummyBackend, settings: Any, monkeypatch: Any
) -> None:
    settings.RUN_CANCEL_BACKENDS = {
        **settings.RUN_CANCEL_BACKENDS,
        "dead": {"BACKEND": "django_run_cancel.testing.DummyBackend"},
    }
    dead = get_backend("dead")
    assert isinstance(dead, DummyBackend)
    dead.outcome = BackendError("dead")
    attempts = []
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=time.sleep)
    monkeypatch.setattr(module, "time", clock)

    def hang(run: Any, call: TaskCall) -> None:
        attempts.append(run)
        clock.now += 0.6 * module.PATIENCE
        DummyBackend.dispatch(dead, run)

    monkeypatch.setattr(module, "STEP_SECONDS", 3 * module.PATIENCE)
    monkeypatch.setattr(dead, "dispatch", hang)
    runs = [created() for _ in range(6)]
    for run in runs:
        dispatch(run, "dead")
    alive = created()
    dispatch(alive, "dummy")
    attempts.clear()
    let_time_pass()
    assert redispatch(limit=6) == 0
    assert len(attempts) == 2
    past = timezone.now() - timedelta(seconds=1)
    get_run_model()._default_manager.filter(pk=alive.pk).update(dispatch_due_at=past)
    assert redispatch(limit=6) == 1  # all six of the dead are due later
    assert dummy.dispatched == [alive.external_id] * 2


def test_executor_that_refuses_some__is_not_away(dummy: DummyBackend, monkeypatch: Any) -> None:
    """What is refused at once costs no time, and keeps no other run of the backend waiting."""
    refused, good = [created() for _ in range(9)], created()
    ids: set[str] = set()
    real = DummyBackend.dispatch

    def reach(self: DummyBackend, given: Any, call: TaskCall) -> None:
        if given.external_id in ids:
            raise BackendError("a process of another host")
        real(self, given, call)

    monkeypatch.setattr(DummyBackend, "dispatch", reach)
    for run in refused:
        monkeypatch.setattr(dummy, "new_external_id", lambda run: ids.add(run.run_id) or run.run_id)
        dispatch(run, "dummy")
    monkeypatch.undo()
    monkeypatch.setattr(DummyBackend, "dispatch", reach)
    dummy.outcome = BackendError("away for a moment")
    dispatch(good, "dummy")
    dummy.clear()
    let_time_pass()
    assert redispatch() == 1
    assert dummy.dispatched == [good.external_id]


def test_dispatch_that_exits__has_failed(dummy: DummyBackend, monkeypatch: Any) -> None:
    def leave(self: DummyBackend, given: Any, call: TaskCall) -> None:
        raise SystemExit("no licence")

    monkeypatch.setattr(DummyBackend, "dispatch", leave)
    run = created()
    dispatch(run, "dummy")
    let_time_pass()
    assert redispatch() == 0
    run.refresh_from_db()
    assert run.dispatch_due_at > timezone.now()


def test_executor_away_for_long__is_said_loudly(
    dummy: DummyBackend, caplog: pytest.LogCaptureFixture
) -> None:
    run = created()
    dummy.outcome = BackendError("broker is away")
    dispatch(run, "dummy")
    let_time_pass()
    redispatch()
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    let_time_pass(queued_at=timezone.now() - timedelta(seconds=301))
    redispatch()
    assert caplog.records[-1].levelname == "ERROR"
    run.refresh_from_db()
    assert run.dispatch_due_at > timezone.now() + timedelta(seconds=140)


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_run_that_somebody_has_locked__keeps_no_other_waiting(dummy: DummyBackend) -> None:
    locked, other = created(), created()
    dummy.outcome = BackendError("away")
    for run in (locked, other):
        dispatch(run, "dummy")
    dummy.clear()
    let_time_pass()
    with locked_elsewhere(locked):
        assert redispatch() == 1
    assert dummy.dispatched == [other.external_id]
    assert redispatch() == 1


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
@pytest.mark.parametrize("long", [False, True])
def test_run_that_its_quick_job_has_locked(
    dummy: DummyBackend, monkeypatch: Any, long: bool
) -> None:
    """It has been sent, and that is noted once the row is free; or it is found running."""
    run = created()
    real = DummyBackend.dispatch
    held = ExitStack()

    def quick(self: DummyBackend, given: Any, call: TaskCall) -> None:
        real(self, given, call)
        held.enter_context(locked_elsewhere(run))
        if not long:
            threading.Timer(0.15, held.close).start()

    monkeypatch.setattr(DummyBackend, "dispatch", quick)
    dispatch(run, "dummy")
    held.close()
    run.refresh_from_db()
    assert (run.dispatch_due_at is None) is not long


@pytest.mark.parametrize(("waited", "longest"), [(0, 2), (100, 100), (3600, 300), (10**6, 300)])
def test_dispatched_again__after_as_long_as_it_has_waited_within_bounds(
    dummy: DummyBackend, waited: int, longest: int
) -> None:
    dummy.outcome = BackendError("away")
    run = created()
    dispatch(run, "dummy")
    began = timezone.now()
    let_time_pass(queued_at=began - timedelta(seconds=waited))
    assert redispatch() == 0
    run.refresh_from_db()
    # A slow test only adds to the time that the run has waited.
    slack = (timezone.now() - began) * 2
    assert timedelta(seconds=longest / 2) <= run.dispatch_due_at - began
    assert run.dispatch_due_at - began <= timedelta(seconds=longest) + slack


def test_run_that_cannot_be_written__keeps_no_other_waiting(dummy: DummyBackend) -> None:
    bad, other = created(), created()
    dummy.outcome = BackendError("away")
    for run in (bad, other):
        dispatch(run, "dummy")
    dummy.clear()
    let_time_pass()
    with unwritable(bad):
        assert redispatch() == 1
    assert dummy.dispatched == [other.external_id]
    assert redispatch() == 1


def test_cancelled_in_the_last_moment__is_not_sent(dummy: DummyBackend, monkeypatch: Any) -> None:
    dummy.outcome = BackendError("away")
    first, second = created(), created()
    for run in (first, second):
        dispatch(run, "dummy")
    dummy.clear()
    let_time_pass()
    real = DummyBackend.dispatch

    def meanwhile(self: DummyBackend, given: Any, call: TaskCall) -> None:
        real(self, given, call)
        other = second if given.run_id == first.run_id else first
        cancel_runs([other.run_id], requested_by="tests")

    monkeypatch.setattr(DummyBackend, "dispatch", meanwhile)
    assert redispatch() == 1
    assert len(dummy.dispatched) == 1


def test_slow_executor__leaves_time_for_the_rest_of_a_step(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    dummy.outcome = BackendError("away")
    for run in [created() for _ in range(4)]:
        dispatch(run, "dummy")
    dummy.clear()
    let_time_pass()
    real, passed = DummyBackend.dispatch, [0.0]

    def slow(self: DummyBackend, given: Any, call: TaskCall) -> None:
        passed[0] += module.STEP_SECONDS * 0.6
        real(self, given, call)

    monkeypatch.setattr(DummyBackend, "dispatch", slow)
    monkeypatch.setattr(module.time, "monotonic", lambda: passed[0])
    assert [redispatch(), redispatch()] == [2, 2]


def test_backend_that_is_not_configured_any_more(dummy: DummyBackend, settings: Any) -> None:
    run = created()
    dispatch(run, "dummy")
    settings.RUN_CANCEL_BACKENDS = {}
    past = timezone.now() - timedelta(seconds=1)
    get_run_model()._default_manager.update(dispatch_due_at=past)
    assert redispatch() == 0
    run.refresh_from_db()
    assert run.dispatch_due_at > timezone.now()


def test_two_workers__each_run_is_sent_once(dummy: DummyBackend, monkeypatch: Any) -> None:
    dummy.outcome = BackendError("away")
    runs = [created(), created()]
    for run in runs:
        dispatch(run, "dummy")
    dummy.clear()
    let_time_pass()
    real = DummyBackend.dispatch
    nested = []

    def meanwhile(self: DummyBackend, given: Any, call: TaskCall) -> None:
        if not nested:
            nested.append(-1)
            nested[0] = redispatch()  # of the other one, which this pass has also seen
        real(self, given, call)

    monkeypatch.setattr(DummyBackend, "dispatch", meanwhile)
    assert redispatch() == 1
    assert nested == [1]
    assert sorted(dummy.dispatched) == sorted(run.external_id for run in runs)
