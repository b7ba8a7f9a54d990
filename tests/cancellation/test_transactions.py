"""The transaction of a cancellation, and the signals after its commit."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, OperationalError, connection, transaction

from django_run_cancel.db import locks, writes
from django_run_cancel.db.retry import MAX_TRIES
from django_run_cancel.models import Cancellation, CancellationItem
from django_run_cancel.signals import run_cancelled
from django_run_cancel.states import RunStatus
from tests.cancellation.helpers import cancel
from tests.helpers import IS_MYSQL, IS_POSTGRESQL, ids, make_run, statuses

pytestmark = pytest.mark.django_db


class TestSignals:
    def test_once_per_changed_run_and_once_per_request(
        self, received: list[Any], django_capture_on_commit_callbacks: Any
    ) -> None:
        runs = [make_run(), make_run(RunStatus.FAILED), make_run(RunStatus.CANCELLED)]
        child = runs[0].create_child()
        with django_capture_on_commit_callbacks(execute=True):
            record = cancel(*ids(runs)).cancellation
            assert received == [], "nothing before the commit"
        about = {"cancellation_id": record.cancellation_id}  # type: ignore[union-attr]
        assert received == [
            {"run_id": runs[0].run_id, **about},
            {"run_id": child.run_id, **about},
            {"run_ids": [runs[0].run_id, child.run_id], **about},
        ]

    def test_none_when_nothing_changed(self, django_capture_on_commit_callbacks: Any) -> None:
        with django_capture_on_commit_callbacks() as callbacks:
            cancel("nope", make_run(RunStatus.FAILED).run_id)
        assert callbacks == []

    def test_receiver_that_raises(
        self,
        received: list[Any],
        django_capture_on_commit_callbacks: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def broken(**kwargs: Any) -> None:
            raise RuntimeError("receiver is broken")

        run_cancelled.connect(broken)
        try:
            with django_capture_on_commit_callbacks(execute=True):
                result = cancel(make_run().run_id)
        finally:
            run_cancelled.disconnect(broken)
        assert result.cancelled
        assert len(received) == 2
        assert "receiver is broken" in caplog.text


@pytest.mark.django_db(transaction=True)
class TestTransaction:
    def test_starts_over_for_children_that_came_in(self, stale_closure: list[int]) -> None:
        top = make_run()
        child = top.create_child()
        assert cancel(top.run_id).cancelled == [top.run_id]
        assert statuses(child) == [RunStatus.CANCELLED]
        assert stale_closure == [2, 2]
        assert Cancellation.objects.count() == 1

    def test_all_or_nothing(self, received: list[Any]) -> None:
        """Whichever statement is the last one."""
        run = make_run()
        for number in count(1):
            executed = count(1)

            def execute_then_fail(execute: Any, sql: str, *args: Any) -> Any:
                result = execute(sql, *args)
                if not sql.startswith("BEGIN") and next(executed) == number:  # noqa: B023
                    raise RuntimeError("failed")
                return result

            try:
                with connection.execute_wrapper(execute_then_fail):
                    cancel(run.run_id)
                break
            except RuntimeError:
                assert statuses(run) == [RunStatus.QUEUED]
                assert not Cancellation.objects.exists()
                assert not CancellationItem.objects.exists()
                assert received == []
        assert number > (2 if IS_POSTGRESQL else 4)

    def test_joins_the_callers(self, received: list[Any]) -> None:
        run = make_run()
        with transaction.atomic():
            assert cancel(run.run_id).cancelled == [run.run_id]
            transaction.set_rollback(True)
        assert statuses(run) == [RunStatus.QUEUED]
        assert not Cancellation.objects.exists()
        with transaction.atomic():
            cancel(run.run_id)
            assert received == []
        assert statuses(run) == [RunStatus.CANCELLED]
        assert len(received) == 2

    def test_failure_dooms_the_callers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = make_run()

        def fail(*args: Any) -> None:
            raise OperationalError("gone")

        with transaction.atomic():
            run.mark_running()
            with monkeypatch.context() as patch:
                patch.setattr(writes, "_inserts", fail)
                with pytest.raises(OperationalError, match="gone"):
                    cancel(run.run_id)
            assert transaction.get_rollback(), "half a cancellation cannot be committed"
        assert statuses(run) == [RunStatus.QUEUED]

    def test_gives_up_after_several_attempts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def deadlock(*args: Any) -> None:
            calls.append(1)
            raise OperationalError(1213, "Deadlock found when trying to get lock")

        monkeypatch.setattr(locks, "_read_runs" if IS_MYSQL else "lock_childless", deadlock)
        with pytest.raises(OperationalError, match="Deadlock"):
            cancel(make_run().run_id)
        assert len(calls) == MAX_TRIES

    def test_other_failures_are_not_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def fail(*args: Any) -> None:
            calls.append(1)
            raise OperationalError(1205, "Lock wait timeout exceeded")

        monkeypatch.setattr(locks, "_read_runs" if IS_MYSQL else "lock_childless", fail)
        with pytest.raises(OperationalError, match="timeout"):
            cancel(make_run().run_id)
        assert len(calls) == 1

    def test_broken_record_is_not_taken_for_a_repeated_key(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def insert(*args: Any) -> None:
            raise IntegrityError("another constraint, perhaps of the host's")

        monkeypatch.setattr(writes, "insert", insert)
        run = make_run()
        with pytest.raises(IntegrityError, match="another constraint"):
            cancel(run.run_id, idempotency_key="k")
        assert statuses(run) == [RunStatus.QUEUED]


@pytest.mark.django_db(transaction=True)
def test_without_autocommit__leaves_nothing_of_another_try(stale_closure: list[int]) -> None:
    top = make_run()
    child = top.create_child()
    transaction.set_autocommit(False)
    try:
        result = cancel(top.run_id)
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert {item.outcome for item in result.items} == {"cancelled"}
    assert statuses(top, child) == [RunStatus.CANCELLED] * 2
    assert Cancellation.objects.get() == result.cancellation
    assert len(stale_closure) == 1


class TestAutocommit:
    def test_refused_where_nobody_commits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = make_run()
        monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
        with pytest.raises(ImproperlyConfigured, match="AUTOCOMMIT"):
            cancel(run.run_id)
        assert statuses(run) == [RunStatus.QUEUED]
