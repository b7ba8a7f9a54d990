"""The order in which a cancellation locks rows, and deadlocks of a host's making."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction

from django_run_cancel.cancellation import CancelResult
from django_run_cancel.models import Cancellation, get_run_model
from django_run_cancel.states import Outcome, RunStatus
from tests.cancellation.threads import (
    PATIENCE,
    Held,
    Job,
    Worker,
    Workers,
    cancel,
    check_decided_once,
    is_deadlock,
    isolated,
)
from tests.helpers import IS_POSTGRESQL, IS_SQLITE, ids, make_run, make_runs, statuses

pytestmark = pytest.mark.django_db(transaction=True)


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

    # Statements before the one that locks runs of which one has children.
    READS = 4 if IS_POSTGRESQL else 1

    @isolated
    def test_what_happens_before_the_locks_is_seen(
        workers: Workers, announced: list[str], isolation: list[str]
    ) -> None:
        # Without a lock to wait for: everything is committed when the cancellation comes to it.
        parent, completed, taken = make_runs(3, RunStatus.RUNNING)
        old_child = parent.create_child()
        reached, go = threading.Event(), threading.Event()

        def job() -> CancelResult:
            with stop_after(READS, reached, go):
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
            old_child.run_id: Outcome.CANCELLED,
            child.run_id: Outcome.CANCELLED,
            grandchild.run_id: Outcome.CANCELLED,
        }
        check_decided_once([first, result], announced)

    @isolated
    def test_child_that_comes_in_while_it_waits_for_the_lock(
        workers: Workers, announced: list[str], isolation: list[str]
    ) -> None:
        parent, other = make_runs(2, RunStatus.RUNNING)
        creation = Held(workers, parent.create_child)
        cancellation = workers.start(lambda: cancel(ids([parent, other])), isolation)
        cancellation.until_blocked()
        creation.end("commit")
        result = cancellation.result()
        (child,) = get_run_model()._default_manager.filter(parent=parent)
        assert statuses(parent, other, child) == [RunStatus.CANCELLED] * 3
        check_decided_once([result], announced)

    def test_requested_run_that_gets_a_parent_while_it_waits(
        workers: Workers, announced: list[str]
    ) -> None:
        """As the integrations have it. It must not hide another new child of that parent."""
        first, parent, adopted = in_key_order(3)
        rows = get_run_model()._default_manager
        # Of the children of a run, PostgreSQL finds the oldest first.
        rows.filter(pk=adopted.pk).update(created_at=parent.created_at - timedelta(days=1))
        first_held = Held(workers, lambda: lock(first))
        cancellation = workers.start(lambda: cancel(ids([first, parent, adopted])))
        cancellation.until_blocked()
        rows.filter(pk=adopted.pk).update(parent=parent)
        child = parent.create_child()
        first_held.end("commit")
        result = cancellation.result()
        assert statuses(first, parent, adopted, child) == [RunStatus.CANCELLED] * 4
        check_decided_once([result], announced)

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
        old_child = high.create_child()
        reached, go = threading.Event(), threading.Event()

        def job() -> CancelResult:
            with stop_after(READS, reached, go):
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
        assert statuses(high, old_child, child, grandchild) == [RunStatus.CANCELLED] * 4
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
