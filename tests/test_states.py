from __future__ import annotations

from datetime import timedelta

import pytest

from django_run_cancel.exceptions import RunCancelError, TransitionNotAllowed
from django_run_cancel.states import ACTIVE, SOURCES, TERMINAL, WAITING, RunStatus
from tests.helpers import make_run, statuses


def test_states__table_is_exhaustive() -> None:
    assert set(SOURCES) == set(RunStatus)
    assert set(RunStatus) == ACTIVE | TERMINAL
    assert not ACTIVE & TERMINAL
    assert WAITING < ACTIVE


def test_states__nothing_leaves_a_terminal_status() -> None:
    for target, sources in SOURCES.items():
        assert not sources & TERMINAL, target


METHODS = {
    RunStatus.QUEUED: "mark_queued",
    RunStatus.RUNNING: "mark_running",
    RunStatus.PAUSED: "mark_paused",
    RunStatus.COMPLETED: "mark_completed",
    RunStatus.FAILED: "mark_failed",
    RunStatus.TERMINATED: "mark_terminated",
    RunStatus.TIMED_OUT: "mark_timed_out",
}


@pytest.mark.django_db
@pytest.mark.parametrize("source", list(RunStatus))
@pytest.mark.parametrize("target", list(METHODS))
def test_transitions__every_pair(source: RunStatus, target: RunStatus) -> None:
    run = make_run(source)
    move = getattr(run, METHODS[target])
    if source in SOURCES[target]:
        move()
        assert statuses(run) == [target]
        assert run.status == target
    else:
        with pytest.raises(TransitionNotAllowed) as caught:
            move()
        assert statuses(run) == [source]
        assert (caught.value.current, caught.value.target) == (source, target)


@pytest.mark.django_db
def test_transitions__cancelled_only_by_the_service() -> None:
    run = make_run(RunStatus.RUNNING)
    with pytest.raises(TransitionNotAllowed, match=r"Use cancel_runs\(\)"):
        run.transition_to(RunStatus.CANCELLED)
    assert statuses(run) == [RunStatus.RUNNING]


@pytest.mark.django_db
def test_transitions__unknown_status() -> None:
    with pytest.raises(ValueError, match="done"):
        make_run().transition_to("done")


@pytest.mark.django_db
def test_transitions__times_and_reason() -> None:
    run = make_run(RunStatus.CREATED)
    run.mark_queued()
    assert run.queued_at is not None
    run.mark_running()
    first_start = run.started_at
    assert first_start is not None
    assert abs(run.heartbeat_at - first_start) < timedelta(seconds=1)
    run.mark_queued()
    run.mark_running()
    assert run.started_at == first_start, "a retry keeps the first start"
    run.mark_failed("out of memory")
    run.refresh_from_db()
    assert run.finished_at >= first_start
    assert run.failure_reason == "out of memory"


@pytest.mark.django_db
@pytest.mark.parametrize("target", [RunStatus.FAILED, RunStatus.TERMINATED, RunStatus.TIMED_OUT])
def test_transitions__reason_of_a_bad_end(target: RunStatus) -> None:
    run, unexplained = make_run(RunStatus.RUNNING), make_run(RunStatus.RUNNING)
    getattr(run, METHODS[target])("the node was drained")
    getattr(unexplained, METHODS[target])()
    for each, reason in ((run, "the node was drained"), (unexplained, "")):
        assert each.failure_reason == reason
        each.refresh_from_db()
        assert (each.status, each.failure_reason) == (target, reason)


@pytest.mark.django_db
def test_transitions__decided_by_the_database_not_the_instance() -> None:
    run = make_run(RunStatus.RUNNING)
    stale = type(run)._default_manager.get(pk=run.pk)
    run.mark_completed()
    with pytest.raises(TransitionNotAllowed, match="is completed and cannot become failed"):
        stale.mark_failed("late")
    assert stale.status == RunStatus.COMPLETED, "the instance has learnt of it"
    run.refresh_from_db()
    assert run.failure_reason == ""


@pytest.mark.django_db
def test_transitions__run_is_gone() -> None:
    run = make_run(RunStatus.RUNNING)
    type(run)._default_manager.filter(pk=run.pk).delete()
    with pytest.raises(RunCancelError, match="does not exist") as caught:
        run.mark_completed()
    assert caught.value.current is None
