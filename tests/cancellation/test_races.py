"""Races between threads, each with a connection of its own.

They have a fixed amount of work, and a verdict that does not depend on who wins.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from django_run_cancel.cancellation import CancelResult, cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.cancellation.threads import (
    Workers,
    cancel,
    check_decided_once,
    check_no_orphans,
    flat,
    isolated,
)
from tests.delivery.helpers import pass_time
from tests.helpers import ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db(transaction=True)


def overlapping(arrange: Callable[[list[str]], list[str]]) -> Callable[[list[str]], Any]:
    """Return a job that cancels overlapping parts of the ids it is given, in some order."""

    def job(run_ids: list[str]) -> list[CancelResult]:
        arranged = arrange(run_ids)
        third = len(arranged) // 3
        parts = arranged[: 2 * third], arranged[third:], arranged[::2]
        return [cancel(part) for part in parts]

    return job


def forwards(run_ids: list[str]) -> list[str]:
    return run_ids


def backwards(run_ids: list[str]) -> list[str]:
    return run_ids[::-1]


def shuffled(run_ids: list[str]) -> list[str]:
    return random.sample(run_ids, len(run_ids))


@pytest.mark.parametrize(
    "orders", [(forwards, backwards) * 2, (shuffled,) * 4], ids=["opposite", "random"]
)
def test_overlapping_requests(workers: Workers, announced: list[str], orders: Any) -> None:
    rounds = [ids(make_runs(30)) for _ in range(4)]
    results = flat(workers.race(rounds, *map(overlapping, orders)))
    check_decided_once(results, announced)
    assert set(announced) == set(flat(rounds))


def make_family() -> list[Any]:
    """Create three trees of 1 + 2 + 4 runs; return them all, parents first."""
    roots = make_runs(3)
    middle = flat([make_runs(2, parent=root) for root in roots])
    return roots + middle + flat([make_runs(2, parent=run) for run in middle])


@pytest.mark.parametrize(
    "orders", [(forwards, backwards) * 2, (shuffled,) * 4], ids=["opposite", "random"]
)
def test_parents_and_children_requested(
    workers: Workers, announced: list[str], orders: Any
) -> None:
    rounds = [ids(make_family()) for _ in range(4)]
    results = flat(workers.race(rounds, *map(overlapping, orders)))
    check_decided_once(results, announced)
    assert set(announced) == set(flat(rounds))


def test_parent_and_child_requested_at_the_same_moment(
    workers: Workers, announced: list[str]
) -> None:
    # The child goes with its parent, or alone: once in either case.
    rounds = [make_family()[2:4] + make_family()[8:10] for _ in range(6)]
    jobs = [lambda runs, n=n: cancel([runs[n].run_id]) for n in range(4)]
    check_decided_once(workers.race(rounds, *jobs), announced)
    check_no_orphans()


def test_completions_race_cancellations(workers: Workers, announced: list[str]) -> None:
    rounds = [make_runs(20, RunStatus.RUNNING) for _ in range(4)]

    def complete(runs: list[Any]) -> list[str]:
        completed = []
        for run in get_run_model()._default_manager.filter(run_id__in=ids(runs)):
            with suppress(TransitionNotAllowed):
                run.mark_completed()
                completed.append(run.run_id)
        return completed

    def cancel_in_fours(runs: list[Any]) -> list[CancelResult]:
        return [cancel(ids(runs[start : start + 4])) for start in range(0, 20, 4)]

    def cancel_backwards(runs: list[Any]) -> list[CancelResult]:
        return cancel_in_fours(runs[::-1])

    answers = flat(workers.race(rounds, complete, complete, cancel_in_fours, cancel_backwards))
    results = [answer for answer in answers if isinstance(answer, CancelResult)]
    completed = [answer for answer in answers if isinstance(answer, str)]
    check_decided_once(results, announced)
    # Nobody was told that a run is completed, or finished, that is not.
    assert len(completed) == len(set(completed))
    assert set(completed).isdisjoint(announced)
    assert set(completed) | set(announced) == set(flat([ids(runs) for runs in rounds]))


def test_force_races_deliveries(workers: Workers, dummy: DummyBackend, settings: Any) -> None:
    """Whoever comes first: each executor is told by force in the end, without a deadlock."""
    settings.RUN_CANCEL_GRACE_SECONDS = 3600  # or they would be told by force all the same
    rounds = [ids(make_runs(20, RunStatus.RUNNING)) for _ in range(4)]
    cancel(flat(rounds))

    def force(run_ids: list[str]) -> None:
        for start in range(0, 20, 5):
            part = run_ids[start : start + 5]
            assert cancel_runs(part, requested_by="test", force=True).cancelled == part

    def deliver(run_ids: list[str]) -> None:
        for _ in range(4):
            deliver_due(limit=7)

    workers.race(rounds, force, lambda run_ids: force(run_ids[::-1]), deliver, deliver)
    pass_time(61)  # what was claimed, but locked when it was to be recorded, is told again
    while deliver_due():
        pass
    by_force = {request.run_id for request, is_forced in dummy.stopped if is_forced}
    assert by_force == set(flat(rounds))
    forced = CancellationItem.objects.filter(force=True, delivery="delivered")
    assert set(forced.values_list("run_id", flat=True)) == by_force
    assert not CancellationItem.objects.filter(delivery="pending").exists()


def test_retries_race_cancellations(workers: Workers, announced: list[str]) -> None:
    rounds = [make_runs(8, RunStatus.RUNNING) for _ in range(3)]

    def retry(runs: list[Any]) -> None:
        mine = list(get_run_model()._default_manager.filter(run_id__in=ids(runs)))
        for _ in range(5):
            for run in mine:
                with suppress(TransitionNotAllowed):
                    run.mark_queued()
                    run.mark_running()

    def cancel_one_by_one(runs: list[Any]) -> list[CancelResult]:
        return [cancel([run.run_id]) for run in runs]

    answers = workers.race(rounds, retry, retry, cancel_one_by_one, cancel_one_by_one)
    check_decided_once(flat([answer for answer in answers if answer]), announced)
    assert set(statuses(*flat(rounds))) == {RunStatus.CANCELLED}


@isolated
def test_new_children_race_cancellations(
    workers: Workers, announced: list[str], isolation: list[str]
) -> None:
    def make_lines() -> list[list[Any]]:
        """Create runs, each above a finished run, which is above a running one."""
        lines = []
        for _ in range(4):
            top = make_run(RunStatus.RUNNING)
            finished = make_run(RunStatus.COMPLETED, parent=top)
            lines.append([top, finished, make_run(RunStatus.RUNNING, parent=finished)])
        return lines

    def create(lines: list[list[Any]]) -> list[Any]:
        children = []
        for _ in range(5):
            for line in random.sample(lines, len(lines)):
                with suppress(RunCancelled):
                    child = random.choice(line).create_child(status=RunStatus.RUNNING)
                    children.append(child)
                    children.append(child.create_child())
        return children

    def cancel_tops(lines: list[list[Any]]) -> list[Any]:
        return [cancel([line[0].run_id]) for line in lines]

    def cancel_middles_and_tops(lines: list[list[Any]]) -> list[Any]:
        return [cancel([line[2].run_id, line[0].run_id]) for line in lines[::-1]]

    rounds = [make_lines() for _ in range(4)]
    jobs = (create, create, cancel_tops, cancel_middles_and_tops)
    answers = flat(workers.race(rounds, *jobs, setup=isolation))
    results = [answer for answer in answers if isinstance(answer, CancelResult)]
    children = [answer for answer in answers if not isinstance(answer, CancelResult)]
    check_no_orphans()
    check_decided_once(results, announced)
    assert set(statuses(*children)) <= {RunStatus.CANCELLED}


def test_stale_instances_saved_during_cancellations(workers: Workers, announced: list[str]) -> None:
    rounds = [make_runs(20, RunStatus.RUNNING) for _ in range(3)]

    def save(runs: list[Any]) -> None:
        stale = list(get_run_model()._default_manager.filter(run_id__in=ids(runs)))
        for title in ("first", "second"):
            for run in random.sample(stale, len(stale)):
                run.title = title
                run.status = RunStatus.QUEUED
                run.save()

    def cancel_in_fours(runs: list[Any]) -> list[CancelResult]:
        return [cancel(ids(runs[start : start + 4])) for start in range(0, 20, 4)]

    answers = workers.race(rounds, save, save, cancel_in_fours, cancel_in_fours)
    check_decided_once(flat([answer for answer in answers if answer]), announced)
    runs = get_run_model()._default_manager.all()
    assert {(run.title, run.status) for run in runs} == {("second", RunStatus.CANCELLED)}


def test_one_idempotency_key_used_by_all_at_once(workers: Workers, announced: list[str]) -> None:
    rounds = [ids(make_runs(3)) for _ in range(5)]

    def job(run_ids: list[str]) -> CancelResult:
        return cancel_runs(run_ids, requested_by="test", idempotency_key=run_ids[0])

    results = workers.race(rounds, *[job] * 4)
    assert Cancellation.objects.count() == len(rounds)
    assert Counter(announced) == Counter(flat(rounds))
    for run_ids in rounds:
        answers = [result for result in results if result.cancelled == run_ids]
        assert len(answers) == 4
        assert len({answer.cancellation.pk for answer in answers if answer.cancellation}) == 1
