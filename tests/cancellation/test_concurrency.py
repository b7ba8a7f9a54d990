"""Races between threads, each with a connection of its own, and proofs of who waits for whom.

The races have a fixed amount of work, and a verdict that does not depend on who wins. The proofs
have no luck in them: they watch one connection wait for another.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.http import HttpResponse

from django_run_cancel.cancellation import CancelResult, cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.exceptions import RunCancelled, TransitionNotAllowed
from django_run_cancel.models import Cancellation, CancellationItem, get_run_model
from django_run_cancel.signals import run_cancelled, runs_cancelled
from django_run_cancel.states import ACTIVE, Outcome, RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import pass_time
from tests.helpers import (
    IS_MYSQL,
    IS_POSTGRESQL,
    IS_SQLITE,
    ApiClient,
    ids,
    make_run,
    make_runs,
    statuses,
)

pytestmark = pytest.mark.django_db(transaction=True)

PATIENCE = 20
"""Seconds after which a thread that still waits has failed. Nothing that works comes near it."""

Job = Callable[[], Any]

# What each connection is told first. A lock that is never released fails the test, not hangs it.
if IS_POSTGRESQL:
    BOUNDED = [f"SET lock_timeout = '{PATIENCE}s'"]
elif IS_MYSQL:
    BOUNDED = [f"SET SESSION innodb_lock_wait_timeout = {PATIENCE}"]
else:
    BOUNDED = [f"PRAGMA busy_timeout = {PATIENCE * 1000}"]

# Under which isolation levels the races with new children are run. On PostgreSQL under one: a
# system check warns of the others.
ISOLATION: dict[str, list[str]] = {"default": []}
if IS_MYSQL:
    for level in ("READ COMMITTED", "REPEATABLE READ"):
        ISOLATION[level.lower()] = [f"SET SESSION TRANSACTION ISOLATION LEVEL {level}"]
    del ISOLATION["default"]
isolated = pytest.mark.parametrize("isolation", ISOLATION.values(), ids=ISOLATION)


class Worker:
    """A thread with a database connection of its own.

    Attributes:
        errors: What the database refused to this thread, whether or not the caller saw it.
    """

    def __init__(
        self, executor: ThreadPoolExecutor, job: Job, setup: Sequence[str], start: Job
    ) -> None:
        self.errors: list[OperationalError] = []
        self._statement = ""
        self._session = threading.Event()
        self._future: Future[Any] = executor.submit(self._work, job, [*BOUNDED, *setup], start)

    def result(self) -> Any:
        return self._future.result(PATIENCE)

    def error(self) -> BaseException | None:
        return self._future.exception(PATIENCE)

    def until_blocked(self) -> None:
        """Return when the thread waits for a lock that another connection has."""
        assert self._session.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while not self._is_blocked():
            assert not self._future.done(), "It did not wait."
            assert time.monotonic() < deadline, "It does not wait."
            time.sleep(0.12 if IS_MYSQL else 0.01)  # InnoDB renews its table of waits so often

    def _work(self, job: Job, setup: Sequence[str], start: Job) -> Any:
        try:
            with connection.cursor() as cursor:
                level = "".join(setup).lower().partition("isolation level ")[2]
                if IS_MYSQL and level:
                    # As Django has it of a host that sets the level in OPTIONS.
                    connection.isolation_level = level
                for statement in setup:
                    cursor.execute(statement)
            self._pid = session_id()
            self._session.set()
            with connection.execute_wrapper(self._watch):
                start()
                return job()
        finally:
            connections.close_all()

    def _watch(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        self._statement = sql
        try:
            return execute(sql, params, many, context)
        except OperationalError as error:
            self.errors.append(error)
            raise
        finally:
            self._statement = ""

    def _is_blocked(self) -> bool:
        if IS_SQLITE:
            # It does not say who waits; callers hold the write lock while they ask.
            return self._statement.startswith("BEGIN")
        if IS_POSTGRESQL:
            question = "SELECT 1 WHERE cardinality(pg_blocking_pids(%s)) > 0"
        else:
            question = (
                "SELECT 1 FROM information_schema.innodb_trx"
                " WHERE trx_mysql_thread_id = %s AND trx_state = 'LOCK WAIT'"
            )
        return bool(fetch(question, self._pid))


class Workers:
    """Starts threads."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self.all: list[Worker] = []
        self.deadlocks_expected = False

    def start(self, job: Job, setup: Sequence[str] = (), start: Job = lambda: None) -> Worker:
        worker = Worker(self._executor, job, setup, start)
        self.all.append(worker)
        return worker

    def race(
        self, rounds: Sequence[Any], *jobs: Callable[[Any], Any], setup: Sequence[str] = ()
    ) -> list[Any]:
        """Call every job once a round, all at the same moment, each in a thread of its own.

        Returns:
            What they returned, in no particular order.
        """
        line = threading.Barrier(len(jobs), timeout=PATIENCE)

        def play(job: Callable[[Any], Any]) -> list[Any]:
            results = []
            try:
                for number, given in enumerate(rounds):
                    if number:
                        line.wait()
                    results.append(job(given))
            except BaseException:
                line.abort()  # or the others would wait for this one
                raise
            return results

        workers = [self.start(partial(play, job), setup, line.wait) for job in jobs]
        return [result for worker in workers for result in worker.result()]


@pytest.fixture
def workers(transactional_db: None) -> Iterator[Workers]:
    """Yield a starter of threads; afterwards, no statement of theirs may have met a deadlock."""
    before = deadlocks()
    with ThreadPoolExecutor() as executor:
        workers = Workers(executor)
        yield workers
    if workers.deadlocks_expected:
        return
    # Also those that were dealt with by trying again. Being refused a lock is not one.
    errors = [error for worker in workers.all for error in worker.errors]
    assert [error for error in errors if is_deadlock(error)] == []
    assert deadlocks() <= before


def is_deadlock(error: OperationalError) -> bool:
    return getattr(error.__cause__, "sqlstate", None) == "40P01" or error.args[0] == 1213


def session_id() -> int:
    question = {"postgresql": "pg_backend_pid()", "mysql": "connection_id()", "sqlite": "0"}
    [[number]] = fetch(f"SELECT {question[connection.vendor]}")
    return int(number)


def deadlocks() -> int:
    """Return how many deadlocks the server has seen in this database."""
    if IS_POSTGRESQL:
        # A session reports its deadlocks at the latest when it ends, which takes it a moment.
        others = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        deadline = time.monotonic() + PATIENCE
        while fetch(others) and time.monotonic() < deadline:
            time.sleep(0.01)
        question = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        [[count]] = fetch(question)
        return int(count)
    if IS_MYSQL:
        # The counter is one for the whole server; the report of the last one says whose it was.
        [[_, _, report]] = fetch("SHOW ENGINE INNODB STATUS")
        _, found, last = report.partition("LATEST DETECTED DEADLOCK")
        name = f"`{connection.settings_dict['NAME']}`"
        if found and name in last.partition("\nTRANSACTIONS\n")[0]:
            question = "SELECT count FROM information_schema.innodb_metrics WHERE name = %s"
            [[count]] = fetch(question, "lock_deadlocks")
            return int(count)
    return 0


def fetch(sql: str, *params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


@pytest.fixture
def announced() -> Iterator[list[str]]:
    """Yield the ids that ``run_cancelled`` has been sent for."""
    run_ids: list[str] = []
    many: list[str] = []

    def one_receiver(run_id: str, **kwargs: Any) -> None:
        run_ids.append(run_id)

    def many_receiver(run_ids: list[str], **kwargs: Any) -> None:
        many.extend(run_ids)

    run_cancelled.connect(one_receiver)
    runs_cancelled.connect(many_receiver)
    yield run_ids
    run_cancelled.disconnect(one_receiver)
    runs_cancelled.disconnect(many_receiver)
    assert sorted(run_ids) == sorted(many)


def cancel(run_ids: Sequence[str]) -> CancelResult:
    return cancel_runs(run_ids, requested_by="test")


def check_decided_once(results: Sequence[CancelResult], announced: Sequence[str]) -> None:
    """Answers, records, signals and runs tell the same story."""
    runs = {run.run_id: run for run in get_run_model()._default_manager.all()}
    cancelled = {run_id for run_id, run in runs.items() if run.status == RunStatus.CANCELLED}
    once = Counter(cancelled)
    rows = list(CancellationItem.objects.all())
    by_request = {row.run_id: row.cancellation_id for row in rows if row.outcome == "cancelled"}
    items = [item for result in results for item in result.items]
    assert Counter(item.run_id for item in items if item.outcome == Outcome.CANCELLED) == once
    assert Counter(row.run_id for row in rows if row.outcome == Outcome.CANCELLED) == once
    assert Counter(announced) == once
    assert {run_id: runs[run_id].cancellation_id for run_id in cancelled} == by_request
    assert Cancellation.objects.count() == len(results)
    for result in results:
        assert cancelled.issuperset(result.cancelled)
        assert cancelled.isdisjoint(result.failed)
    for item in items:
        if item.outcome == Outcome.ALREADY_FINISHED:
            assert runs[item.run_id].status == item.previous_status
    for run_id in runs.keys() - cancelled:
        assert (runs[run_id].cancellation_id, runs[run_id].stop_state) == (None, "")


def check_no_orphans() -> None:
    """Nothing below a cancelled run is active, whatever is in between."""
    runs = {run.pk: run for run in get_run_model()._default_manager.all()}
    for run in runs.values():
        above = runs.get(run.parent_id)
        while run.status in ACTIVE and above is not None:
            assert above.status != RunStatus.CANCELLED, f"{run.run_id} survived"
            above = runs.get(above.parent_id)


# Races


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


def flat(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


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


# Proofs: one connection waits for another


class Held:
    """A transaction that a thread keeps open after its job, until it is told how to end."""

    def __init__(self, workers: Workers, job: Job, setup: Sequence[str] = ()) -> None:
        self._job = job
        self._done = threading.Event()
        self._end = threading.Event()
        self._fate = "commit"
        self.worker = workers.start(self._hold, setup)
        assert self._done.wait(PATIENCE)

    def end(self, fate: str) -> Any:
        self._fate = fate
        self._end.set()
        return self.worker.result()

    def _hold(self) -> Any:
        try:
            with transaction.atomic():
                result = self._job()
                self._done.set()
                assert self._end.wait(PATIENCE)
                transaction.set_rollback(self._fate == "rollback")
                return result
        finally:
            self._done.set()


@pytest.mark.parametrize(
    ("fate", "outcome"),
    [("commit", Outcome.ALREADY_CANCELLED), ("rollback", Outcome.CANCELLED)],
)
def test_second_cancellation_waits_for_the_first(
    workers: Workers, announced: list[str], fate: str, outcome: Outcome
) -> None:
    run = make_run()
    first = Held(workers, lambda: cancel([run.run_id]))
    second = workers.start(lambda: cancel([run.run_id]))
    second.until_blocked()
    assert announced == []
    first.end(fate)
    assert [item.outcome for item in second.result().items] == [outcome]
    assert announced == [run.run_id]


def test_cancellation_waits_for_a_completion(workers: Workers, announced: list[str]) -> None:
    run = make_run(RunStatus.RUNNING)
    completion = Held(workers, run.mark_completed)
    cancellation = workers.start(lambda: cancel([run.run_id]))
    cancellation.until_blocked()
    completion.end("commit")
    assert cancellation.result().failed == [run.run_id]
    assert (statuses(run), announced) == ([RunStatus.COMPLETED], [])


def test_completion_waits_for_a_cancellation(workers: Workers) -> None:
    run = make_run(RunStatus.RUNNING)
    cancellation = Held(workers, lambda: cancel([run.run_id]))
    # In a transaction, since SQLite has no other way to wait for one.
    completion = workers.start(transaction.atomic(run.mark_completed))
    completion.until_blocked()
    cancellation.end("commit")
    assert isinstance(completion.error(), TransitionNotAllowed)
    assert statuses(run) == [RunStatus.CANCELLED]


@isolated
@pytest.mark.parametrize(
    ("through", "fate"),
    [("parent", "commit"), ("finished parent", "commit"), ("parent", "rollback")],
)
def test_new_child_waits_for_a_cancellation(
    workers: Workers, through: str, fate: str, isolation: list[str]
) -> None:
    top = parent = make_run(RunStatus.RUNNING)
    if through == "finished parent":
        parent = make_run(RunStatus.COMPLETED, parent=top)
    cancellation = Held(workers, lambda: cancel([top.run_id]), isolation)
    creation = workers.start(parent.create_child, isolation)
    creation.until_blocked()
    cancellation.end(fate)
    if fate == "rollback":
        assert statuses(creation.result()) == [RunStatus.CREATED]
    else:
        assert isinstance(creation.error(), RunCancelled)
        assert not get_run_model()._default_manager.filter(parent=parent, status="created")


@isolated
@pytest.mark.parametrize("through", ["parent", "finished parent"])
def test_cancellation_waits_for_a_new_child_and_takes_it_along(
    workers: Workers, announced: list[str], through: str, isolation: list[str]
) -> None:
    top = parent = make_run(RunStatus.RUNNING)
    if through == "finished parent":
        parent = make_run(RunStatus.COMPLETED, parent=top)

    def create() -> list[Any]:
        child = parent.create_child()
        return [child, child.create_child()]

    creation = Held(workers, create, isolation)
    cancellation = workers.start(lambda: cancel([top.run_id]), isolation)
    cancellation.until_blocked()
    children = creation.end("commit")
    result = cancellation.result()
    assert result.cancelled == [top.run_id]
    assert set(statuses(top, *children)) == {RunStatus.CANCELLED}
    check_decided_once([result], announced)


# Only where several transactions can write at a time
if not IS_SQLITE:

    @contextmanager
    def stop_after(statements: int, reached: threading.Event, go: threading.Event) -> Iterator[Any]:
        """Stop this thread when it has executed so many statements, until it is told to go on."""
        count = 0

        def wrapper(execute: Callable[..., Any], *args: Any) -> Any:
            nonlocal count
            result = execute(*args)
            count += 1
            if count == statements:
                reached.set()
                assert go.wait(PATIENCE)
            return result

        with connection.execute_wrapper(wrapper):
            yield

    @isolated
    def test_what_happens_after_the_first_read_is_seen(
        workers: Workers, announced: list[str], isolation: list[str]
    ) -> None:
        # Without a lock to wait for: everything is committed when the cancellation comes to it.
        parent, completed, taken = make_runs(3, RunStatus.RUNNING)
        reached, go = threading.Event(), threading.Event()

        def job() -> CancelResult:
            with stop_after(1, reached, go):
                return cancel(ids([parent, completed, taken]))

        cancellation = workers.start(job, isolation)
        assert reached.wait(PATIENCE)
        child = parent.create_child()
        grandchild = child.create_child()
        completed.mark_completed()
        first = cancel([taken.run_id])
        go.set()
        result = cancellation.result()
        outcomes = {item.run_id: item.outcome for item in result.items}
        assert outcomes == {
            parent.run_id: Outcome.CANCELLED,
            completed.run_id: Outcome.ALREADY_FINISHED,
            taken.run_id: Outcome.ALREADY_CANCELLED,
            child.run_id: Outcome.CANCELLED,
            grandchild.run_id: Outcome.CANCELLED,
        }
        check_decided_once([first, result], announced)

    def in_key_order(count: int) -> list[Any]:
        """Create runs; return them in the order in which the database sorts their keys."""
        run_ids = ids(make_runs(count, RunStatus.RUNNING))
        runs = get_run_model()._default_manager.filter(run_id__in=run_ids)
        return list(runs.order_by("pk"))

    def lock(*runs: Any) -> None:
        for run in runs:
            get_run_model()._default_manager.select_for_update().get(pk=run.pk)

    def check_same_order(workers: Workers, runs: list[Any], *setups: Sequence[str]) -> None:
        """Two requests for the same runs in opposite orders wait for the same one first."""
        low, middle, high = runs
        middle_held = Held(workers, lambda: lock(middle))
        one = workers.start(lambda: cancel(ids([low, middle, high])), setups[0])
        one.until_blocked()
        # Were the next one to begin at the other end, each would now have what the other needs.
        other = workers.start(lambda: cancel(ids([high, middle, low])), setups[1])
        other.until_blocked()
        middle_held.end("commit")
        outcomes = [item.outcome for item in one.result().items + other.result().items]
        assert outcomes == [Outcome.CANCELLED] * 3 + [Outcome.ALREADY_CANCELLED] * 3

    def test_locks_are_taken_in_the_order_of_the_keys(workers: Workers) -> None:
        check_same_order(workers, in_key_order(3), [], [])

    def test_new_child_with_a_lower_key_than_its_parent(
        workers: Workers, announced: list[str]
    ) -> None:
        # As random keys have it. A cancellation that has locked the parent must not wait for
        # such a child: whoever has that may wait for the parent.
        low, high = in_key_order(2)
        get_run_model()._default_manager.filter(pk=low.pk).delete()
        reached, go = threading.Event(), threading.Event()

        def job() -> CancelResult:
            with stop_after(1, reached, go):
                return cancel([high.run_id])

        cancellation = workers.start(job)
        assert reached.wait(PATIENCE)
        child = high.create_child(pk=low.pk)
        parent_held = Held(workers, lambda: lock(high))
        go.set()
        cancellation.until_blocked()
        creation = workers.start(child.create_child)
        creation.until_blocked()
        parent_held.end("commit")
        grandchild = creation.result()
        result = cancellation.result()
        assert statuses(high, child, grandchild) == [RunStatus.CANCELLED] * 3
        check_decided_once([result], announced)

    def deadlock(workers: Workers, runs: list[Any], job: Job) -> Worker:
        """Make a host's transaction and a job of ours wait for each other; the job must lose.

        PostgreSQL looks for a deadlock when one has waited for some time, and gives up the one
        that looked; MariaDB looks at once, and gives up the one that has changed less.
        """
        workers.deadlocks_expected = True
        patient = ["SET deadlock_timeout = '1h'"] if IS_POSTGRESQL else []
        impatient = ["SET deadlock_timeout = '10ms'"] if IS_POSTGRESQL else []
        others = make_runs(20)
        low, middle, high = runs
        first_half, go = threading.Event(), threading.Event()

        def host() -> None:
            with transaction.atomic():
                for run in others:
                    run.title = "changed"
                    run.save()
                lock(high)
                first_half.set()
                assert go.wait(PATIENCE)
                lock(low)

        middle_held = Held(workers, lambda: lock(middle))
        host_worker = workers.start(host, patient)
        assert first_half.wait(PATIENCE)
        worker = workers.start(job, impatient)
        worker.until_blocked()
        go.set()
        host_worker.until_blocked()
        # Now the job has the low one, and the host the high one.
        middle_held.end("commit")
        host_worker.result()
        return worker

    def test_deadlock_of_a_hosts_making_is_tried_again(
        workers: Workers, announced: list[str]
    ) -> None:
        runs = in_key_order(3)
        cancellation = deadlock(workers, runs, lambda: cancel(ids(runs)))
        result = cancellation.result()
        assert [is_deadlock(error) for error in cancellation.errors] == [True]
        assert result.cancelled == ids(runs)
        check_decided_once([result], announced)

    def test_deadlock_inside_a_callers_transaction_is_the_callers(
        workers: Workers, announced: list[str]
    ) -> None:
        runs = in_key_order(3)
        cancellation = deadlock(workers, runs, transaction.atomic(lambda: cancel(ids(runs))))
        assert isinstance(cancellation.error(), OperationalError)
        assert [is_deadlock(error) for error in cancellation.errors] == [True]
        assert statuses(*runs) == [RunStatus.RUNNING] * 3
        assert not Cancellation.objects.exists()
        assert announced == []


if IS_POSTGRESQL:

    def test_locks_are_taken_in_the_order_of_the_keys_under_any_plan(workers: Workers) -> None:
        runs = in_key_order(3)
        get_run_model()._default_manager.filter(run_id__in=ids(runs)).delete()
        # In the table they stand in the opposite order, in which a scan of it meets them.
        get_run_model()._default_manager.bulk_create(reversed(runs))
        by_index = ["SET enable_seqscan = off", "SET enable_bitmapscan = off"]
        by_table = ["SET enable_indexscan = off", "SET enable_bitmapscan = off"]
        check_same_order(workers, runs, by_index, by_table)

    def test_rows_that_refer_to_a_run_do_not_wait(workers: Workers) -> None:
        run, other = make_run(RunStatus.RUNNING), make_run()
        cancellation = Held(workers, lambda: cancel([run.run_id]))
        model = get_run_model()

        def refer() -> None:
            names = {"table": model._meta.db_table, "pk": model._meta.pk.column}
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '200ms'")
                cursor.execute(
                    "SELECT 1 FROM {table} WHERE {pk} = %s FOR KEY SHARE".format(**names), [run.pk]
                )
            # As a host's own tables do; that a child needs create_child() is another matter.
            model._default_manager.filter(pk=other.pk).update(parent=run)

        workers.start(refer).result()
        cancellation.end("commit")


# What the endpoints answer when they cannot have the lock

# MariaDB counts in whole seconds, with 0 for not at all.
if IS_POSTGRESQL:
    IMPATIENT = ["SET lock_timeout = '50ms'"]
elif IS_MYSQL:
    IMPATIENT = ["SET SESSION innodb_lock_wait_timeout = 0"]
else:
    IMPATIENT = ["PRAGMA busy_timeout = 50"]


@pytest.mark.parametrize(("endpoint", "key_is_new"), [("many", False), ("one", True)])
def test_locked_database_is_answered_with_503(
    workers: Workers, announced: list[str], api: ApiClient, endpoint: str, key_is_new: bool
) -> None:
    run = make_run()
    if not key_is_new:
        api.get("/v1/runs")  # notes that the key is in use: nothing is left to write but the run
    body = {"run_ids": [run.run_id]} if endpoint == "many" else {}
    path = "/v1/runs/cancel" if endpoint == "many" else f"/v1/runs/{run.run_id}/cancel"

    def post() -> HttpResponse:
        return api.send(path, body)

    def hold() -> None:
        get_run_model()._default_manager.filter(pk=run.pk).update(title="held")

    holder = Held(workers, hold)
    worker = workers.start(post, IMPATIENT)
    response = worker.result()
    # On SQLite, that the key is in use could not be noted either.
    assert len(worker.errors) == (2 if key_is_new and IS_SQLITE else 1)
    assert response.status_code == 503
    assert response["Content-Type"] == "application/json"
    assert int(response["Retry-After"]) > 0
    assert set(response.json()) == {"detail"}
    holder.end("commit")
    assert statuses(run) == [RunStatus.QUEUED]
    assert not Cancellation.objects.exists()
    assert not CancellationItem.objects.exists()
    assert announced == []
    assert workers.start(post).result().status_code == 200
    assert statuses(run) == [RunStatus.CANCELLED]
