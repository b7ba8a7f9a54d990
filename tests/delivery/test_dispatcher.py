"""Handing runs to executors."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, transaction
from django.utils import timezone

from django_run_cancel.backends import TaskCall
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import dispatch
from django_run_cancel.delivery import dispatcher as module
from django_run_cancel.delivery.dispatcher import redispatch
from django_run_cancel.exceptions import BackendError, TransitionNotAllowed, UnknownBackend
from django_run_cancel.models import get_run_model
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import created, let_dispatches_fall_due
from tests.helpers import IS_SQLITE, locked_elsewhere, make_run


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
    let_dispatches_fall_due()
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
    let_dispatches_fall_due()
    assert redispatch() == 1
    assert dummy.calls == [TaskCall(None, [{"url": "\\u0000 é"}], {}, {})]
    run.refresh_from_db()
    assert run.dispatch_call is None


def test_dispatch__arguments_go_with_a_run_that_ends_undispatched(dummy: DummyBackend) -> None:
    run = created()
    dummy.outcome = BackendError("broker is away")
    dispatch(run, "dummy", args=["secret"])
    cancel_runs([run.run_id], requested_by="tests")
    let_dispatches_fall_due()
    assert redispatch() == 0
    run.refresh_from_db()
    assert (run.dispatch_call, run.dispatch_due_at) == (None, None)


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, "\0", {"a\0": 1}, "\ud800"])
def test_dispatch__arguments_that_cannot_be_kept(dummy: DummyBackend, value: Any) -> None:
    run = created()
    with pytest.raises(TypeError, match="arguments and options"):
        dispatch(run, "dummy", args=[value])
    run.refresh_from_db()
    assert (run.status, dummy.dispatched) == (RunStatus.CREATED, [])


def test_dispatch__given_an_id(dummy: DummyBackend) -> None:
    with pytest.raises(TypeError, match="takes a run, not 'tsk_1'"):
        dispatch("tsk_1", "dummy")  # type: ignore[arg-type]


def test_dispatcher_killed_before_it_sent(dummy: DummyBackend, monkeypatch: Any) -> None:
    run = created()
    monkeypatch.setattr(transaction, "on_commit", lambda *args, **kwargs: None)
    dispatch(run, "dummy")
    monkeypatch.undo()
    assert redispatch() == 0  # whoever dispatches has some seconds to say so
    let_dispatches_fall_due()
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

    pauses: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(DummyBackend, "dispatch", quick)
    dispatch(run, "dummy")
    run.refresh_from_db()
    assert run.dispatch_due_at is not None  # the second one is still to be handed over
    assert sum(pauses) == 0


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


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_run_that_is_kept_locked__is_waited_for_less_than_a_second(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    """Whoever dispatches it waits meanwhile, such as a request of a browser."""
    pauses: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pauses.append))
    run = created()
    with ExitStack() as held:

        def keep(self: DummyBackend, given: Any, call: TaskCall) -> None:
            held.enter_context(locked_elsewhere(run))

        monkeypatch.setattr(DummyBackend, "dispatch", keep)
        dispatch(run, "dummy")
    assert len(pauses) > 1
    assert min(pauses) >= 0
    assert sum(pauses) < 1


def test_run_that_nobody_has_locked__is_not_waited_for(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pauses.append))
    run = created()
    dispatch(run, "dummy")
    run.refresh_from_db()
    assert run.dispatch_due_at is None
    assert sum(pauses) == 0


def test_database_away_after_the_commit__leaves_the_run_to_the_worker(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    """Whoever has committed must not take it that nothing has been dispatched."""

    def away(*args: Any, **values: Any) -> Any:
        raise OperationalError("away")

    run = created()
    monkeypatch.setattr(module.locks, "update_unlocked", away)
    dispatch(run, "dummy")
    monkeypatch.undo()
    run.refresh_from_db()
    assert run.status == RunStatus.QUEUED
    assert run.dispatch_due_at > timezone.now()
