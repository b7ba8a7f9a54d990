from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.backends import BaseBackend, StopOutcome, StopRequest
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.cancellation.evidence import record_stopped
from django_run_cancel.db.clock import database_now
from django_run_cancel.delivery import (
    deliver_due,
    dispatch,
    handlers,
    outbox,
    policy,
    retry_deliveries,
    step,
)
from django_run_cancel.delivery.outbox import queue_size
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import HANDED_BACK, RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery import helpers
from tests.delivery.helpers import (
    HANDLED,
    cancelled,
    claim_all,
    item_of,
    look_again,
    pass_time,
    state_of,
)
from tests.helpers import IS_SQLITE, ids, make_run, make_runs, unwritable


def test_told__once(dummy: DummyBackend) -> None:
    run = cancelled()
    assert deliver_due().delivered == 1
    assert not deliver_due()
    assert dummy.stopped == [(StopRequest(run.run_id, "job", True), False)]
    assert state_of(run) == ("delivered", "stopping")
    assert (item_of(run).attempts, item_of(run).last_error) == (1, "")


@pytest.mark.parametrize("status", [RunStatus.CREATED, RunStatus.QUEUED])
def test_never_started__is_told_as_not_running(dummy: DummyBackend, status: str) -> None:
    run = cancelled(status)
    deliver_due()
    assert dummy.stopped == [(StopRequest(run.run_id, "job", False), False)]
    assert state_of(run) == ("delivered", "never_started")
    assert item_of(run).next_attempt_at is None


def test_running_ones_first_and_all_in_one_call(dummy: DummyBackend, monkeypatch: Any) -> None:
    calls: list[list[bool]] = []
    real = DummyBackend.stop

    def stop(self: DummyBackend, requests: Any, *, force: bool) -> Any:
        calls.append([request.running for request in requests])
        return real(self, requests, force=force)

    monkeypatch.setattr(DummyBackend, "stop", stop)
    runs = make_runs(3) + make_runs(2, RunStatus.RUNNING)
    cancel_runs(ids(runs), requested_by="tests")
    assert deliver_due().delivered == 5
    assert calls == [[True, True, False, False, False]]


def test_stopped__is_evidence(dummy: DummyBackend) -> None:
    running, waiting = cancelled(), cancelled(RunStatus.QUEUED)
    dummy.outcome = StopOutcome.STOPPED
    assert deliver_due().delivered == 2
    assert state_of(running) == ("delivered", "killed")
    assert state_of(waiting) == ("delivered", "never_started")
    assert item_of(running).next_attempt_at is None


def test_unsupported__is_said(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = StopOutcome.UNSUPPORTED
    deliver_due()
    assert state_of(run) == ("delivered", "stopping")
    assert "own checkpoints" in item_of(run).last_error


def test_told_once__repeated_until_it_has_stopped(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = StopOutcome.TOLD_ONCE
    for attempts in range(1, 5):
        assert deliver_due().repeated == 1
        assert not deliver_due()
        assert state_of(run) == ("pending", "stopping")
        assert item_of(run).attempts == attempts
        pass_time(3)
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    record_stopped([run.run_id], "acknowledged")
    assert deliver_due().delivered == 1
    assert state_of(run) == ("delivered", "acknowledged")
    assert len(dummy.stopped) == 4  # no need to tell a run that has stopped


def test_told_once__repetitions_are_no_failures(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = StopOutcome.TOLD_ONCE
    for _ in range(12):
        assert deliver_due().repeated == 1
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    dummy.outcome = OSError("broker is away for a moment")
    assert deliver_due().failed == 1
    item = item_of(run)
    assert item.delivery == "pending"
    assert item.next_attempt_at - timezone.now() <= timedelta(seconds=64)  # type: ignore[operator]


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.QUEUED])
def test_told_once__not_for_ever(dummy: DummyBackend, status: str) -> None:
    run = cancelled(status)
    dummy.outcome = StopOutcome.TOLD_ONCE
    assert deliver_due().repeated == 1
    pass_time(301)
    assert deliver_due().delivered == 1
    assert item_of(run).delivery == "delivered"
    pass_time(100)
    deliver_due()
    assert len(dummy.stopped) == 2


def test_told_once__a_few_times_if_it_never_started(dummy: DummyBackend) -> None:
    """Whoever did not hear it is refused at the start."""
    run = cancelled(RunStatus.QUEUED)
    dummy.outcome = StopOutcome.TOLD_ONCE
    for _ in range(5):
        deliver_due()
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    assert len(dummy.stopped) == policy.MAX_REPEATS == 3
    assert item_of(run).delivery == "delivered"


def test_waiting_to_be_tried_again__is_running_unless_handed_back(dummy: DummyBackend) -> None:
    handed_back, at_work, unknown = (make_run(RunStatus.RUNNING) for _ in range(3))
    for run, holder in ((handed_back, HANDED_BACK), (at_work, uuid4()), (unknown, None)):
        run.mark_queued()
        rows = get_run_model()._default_manager.filter(pk=run.pk)
        rows.update(started_at=timezone.now(), execution_id=holder, external_id=run.run_id)
    cancel_runs(ids([handed_back, at_work, unknown]), requested_by="tests")
    dummy.outcome = StopOutcome.STOPPED
    deliver_due()
    assert {request.run_id: request.running for request, _ in dummy.stopped} == {
        handed_back.run_id: False,
        at_work.run_id: True,
        unknown.run_id: True,
    }
    assert [state_of(run)[1] for run in (handed_back, at_work, unknown)] == [
        "killed",
        "stopping",
        "stopping",
    ]


def test_told_once__of_a_run_that_has_been_deleted(dummy: DummyBackend) -> None:
    run = cancelled()
    get_run_model()._default_manager.all().delete()
    dummy.outcome = StopOutcome.TOLD_ONCE
    assert deliver_due().delivered == 1
    assert dummy.stopped == [(StopRequest(run.run_id, "job", True), False)]


def test_force__asked_for(dummy: DummyBackend) -> None:
    run = cancelled(force=True)
    assert item_of(run).force
    deliver_due()
    assert [force for _, force in dummy.stopped] == [True]
    assert item_of(run).next_attempt_at is None


def test_executor_away__told_when_it_is_back(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = OSError("broker is away")
    for attempts in range(1, 4):
        assert deliver_due().failed == 1
        item = item_of(run)
        assert (item.delivery, item.attempts) == ("pending", attempts)
        assert item.last_error == "OSError: broker is away"
        wait = (item.next_attempt_at - timezone.now()).total_seconds()  # type: ignore[operator]
        assert 2**attempts / 2 - 1 < wait <= 2**attempts
        CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    dummy.clear()
    assert deliver_due().delivered == 1
    assert (item_of(run).delivery, item_of(run).last_error) == ("delivered", "")


def test_error_that_no_database_can_store(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = OSError("\0 \ud800 é")
    assert deliver_due().failed == 1
    assert item_of(run).last_error == "OSError:  \\ud800 é"


def test_error_with_the_password_of_a_broker(dummy: DummyBackend) -> None:
    run = cancelled()
    dummy.outcome = OSError("cannot reach amqp://guest:secret@broker:5672/a@b")
    assert deliver_due().failed == 1
    assert item_of(run).last_error == "OSError: cannot reach amqp://…@broker:5672/a@b"
    # Also where a long one is cut.
    dummy.outcome = OSError("x" * 975 + " amqp://guest:secret@broker")
    pass_time(60)
    assert deliver_due().failed == 1
    assert item_of(run).last_error.endswith("x amqp://…@broker")


@pytest.mark.parametrize("password", ["S3CRET", "ss-S3CR@T", "S3CR:ET"])
def test_error_with_a_password__in_no_log_either(
    dummy: DummyBackend, password: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 1
    run = cancelled()
    dummy.outcome = OSError(f"cannot reach amqp://guest:{password}@broker:5672//")
    deliver_due()
    dispatch(make_run(RunStatus.CREATED), "dummy")
    assert "S3CR" not in item_of(run).last_error
    assert "S3CR" not in caplog.text
    assert caplog.text.count("amqp://…@broker:5672//") == 2


def test_log__says_where_it_came_from_at_the_first_attempt_and_the_last(
    dummy: DummyBackend, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 3
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.explode"]
    cancelled(backend="", external_id="")
    for _ in range(3):
        deliver_due()
        pass_time(100)
    assert ["Traceback" in record.message for record in caplog.records] == [True, False, True]


def test_log__of_an_endless_error_is_its_end(dummy: DummyBackend, caplog: Any) -> None:
    cancelled()
    dummy.outcome = OSError("x" * 1_000_000 + " password=hunter2 and this is the end")
    deliver_due()
    (record,) = caplog.records
    assert len(record.message) < 2 * outbox.MAX_LOG_LENGTH
    assert record.message.endswith("password=… and this is the end")


def test_dead_backend_with_many_items__does_not_starve_the_others(
    dummy: DummyBackend, settings: Any
) -> None:
    settings.RUN_CANCEL_BACKENDS = {
        **settings.RUN_CANCEL_BACKENDS,
        "exploding": {"BACKEND": f"{helpers.__name__}.Exploding"},
    }
    for _ in range(6):
        cancelled(backend="exploding")
    cancelled()
    report = deliver_due(limit=2)
    assert (report.delivered, report.failed, report.repeated) == (1, 2, 0)


def test_report__counts_each_backend_for_itself(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_BACKENDS = {
        "a": {"BACKEND": f"{helpers.__name__}.Exploding"},
        "b": {"BACKEND": f"{helpers.__name__}.Gentle"},
        **settings.RUN_CANCEL_BACKENDS,
    }
    dummy.outcome = StopOutcome.TOLD_ONCE
    for alias in ("a", "a", "b", "dummy"):
        cancelled(backend=alias)
    report = deliver_due()
    assert (report.failed, report.delivered, report.repeated) == (2, 1, 1)


def test_last_attempt__failed_and_loud_until_somebody_retries(
    dummy: DummyBackend, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RUN_CANCEL_MAX_ATTEMPTS = 2
    runs = [cancelled(), cancelled()]
    dummy.outcome = OSError("broker is away")
    deliver_due()
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    CancellationItem.objects.update(next_attempt_at=timezone.now() - timedelta(seconds=1))
    assert deliver_due().failed == 2
    assert "ERROR" in {record.levelname for record in caplog.records}
    assert state_of(runs[0]) == ("failed", "stopping")
    pass_time(10_000)
    dummy.clear()
    deliver_due()
    assert dummy.stopped == []
    assert queue_size()["delivery_failed"] == 2
    mine = CancellationItem.objects.filter(run_id=runs[0].run_id)
    assert retry_deliveries(mine) == 1
    assert deliver_due().delivered == 1
    assert [item_of(run).delivery for run in runs] == ["delivered", "failed"]
    assert retry_deliveries() == 1
    assert retry_deliveries() == 0


@pytest.mark.usefixtures("backends")
def test_bad_rows__hold_nobody_up(dummy: DummyBackend) -> None:
    names = ("unknown", "gone", "exploding", "mute", "listing", "nodding", "speechless", "unsure")
    bad = [cancelled(backend=name) for name in names]
    good = cancelled()
    began = database_now("default")
    report = deliver_due()
    assert (report.delivered, report.failed) == (1, 8)
    assert state_of(good) == ("delivered", "stopping")
    assert [item_of(run).delivery for run in bad] == ["pending"] * 8
    errors = [item_of(run).last_error for run in bad]
    assert "no backend 'unknown'" in errors[0]
    assert "nowhere" in errors[1]
    assert errors[2] == "RuntimeError: boom"
    assert "'mute' did not say" in errors[3]
    assert "ValueError" in errors[4]
    assert "'nodding' did not say" in errors[5]
    assert "Unspeakable" in errors[6]
    assert errors[7] == "RuntimeError: cannot tell"
    assert all(item_of(run).next_attempt_at > began + timedelta(seconds=1) for run in bad)


def test_row_that_cannot_be_written__holds_no_other_up(
    dummy: DummyBackend, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a trigger of the host refuses it."""
    dummy.outcome = StopOutcome.STOPPED
    bad, *others = [cancelled(external_id=f"job {n}") for n in range(3)]
    nobody_knows = cancelled(external_id="")
    with unwritable(bad):
        assert deliver_due().delivered == 2
        assert [state_of(run) for run in others] == [("delivered", "killed")] * 2
        assert state_of(bad) == ("pending", "stopping")
        settings.RUN_CANCEL_PRESUME_SECONDS = 0.001
        look_again()
        assert deliver_due().presumed == 1
        assert state_of(nobody_knows)[1] == "presumed"
    assert len([each for each in caplog.messages if bad.run_id in each]) == 1
    pass_time(60)
    deliver_due()
    assert state_of(bad) == ("delivered", "killed")


def test_worker_killed_between_claim_and_call(dummy: DummyBackend) -> None:
    run = cancelled()
    assert len(claim_all().items) == 1
    assert not deliver_due()
    pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
    assert deliver_due().delivered == 1
    assert (len(dummy.stopped), item_of(run).attempts) == (1, 2)


def test_worker_killed_between_call_and_record(dummy: DummyBackend, monkeypatch: Any) -> None:
    run = cancelled()
    dummy.outcome = StopOutcome.STOPPED
    monkeypatch.setattr(outbox, "record", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        deliver_due()
    monkeypatch.undo()
    assert item_of(run).delivery == "pending"
    pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
    assert deliver_due().delivered == 1
    assert state_of(run) == ("delivered", "killed")


def test_late_worker__does_not_overwrite_what_came_after(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    """Its lease ran out, and another worker was told that the broker is away."""
    run = cancelled()
    real = DummyBackend.stop

    def slow(self: DummyBackend, requests: Any, *, force: bool) -> Any:
        monkeypatch.undo()
        pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
        self.outcome = OSError("away")
        assert deliver_due().failed == 1
        self.outcome = StopOutcome.TOLD
        return real(self, requests, force=force)

    monkeypatch.setattr(DummyBackend, "stop", slow)
    deliver_due()
    assert (item_of(run).delivery, item_of(run).last_error) == ("pending", "OSError: away")


def test_batch__statements_do_not_depend_on_its_size(dummy: DummyBackend) -> None:
    counts = []
    for number in (1, 60):
        cancel_runs(ids(make_runs(number, RunStatus.RUNNING)), requested_by="tests")
        look_again()
        with CaptureQueriesContext(connection) as captured:
            assert deliver_due().delivered == number
        counts.append(len(captured))
    assert counts[0] == counts[1]
    assert len(dummy.stopped) == 61


@pytest.mark.skipif(IS_SQLITE, reason="SQLite has one writer")
def test_several_workers__nothing_is_told_twice(dummy: DummyBackend) -> None:
    cancel_runs(ids(make_runs(200, RunStatus.RUNNING)), requested_by="tests")
    start = threading.Barrier(4)
    errors = []

    def work() -> None:
        try:
            start.wait()
            while deliver_due(limit=10):
                pass
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    told = [request.run_id for request, _ in dummy.stopped]
    assert len(told) == len(set(told)) == 200


def test_handlers__once_even_for_what_never_started(
    dummy: DummyBackend, handled: list[str]
) -> None:
    runs = [cancelled(RunStatus.QUEUED, backend="", external_id=""), cancelled()]
    finished = make_run(RunStatus.COMPLETED)
    cancel_runs([finished.run_id, runs[0].run_id, "unknown"], requested_by="tests")
    assert handled == []
    assert deliver_due().handled == 2
    assert not deliver_due()
    assert sorted(handled) == sorted(ids(runs))
    assert set(CancellationItem.objects.values_list("handling", flat=True)) == {
        "delivered",
        "not_needed",
    }


def test_handlers__at_most_so_many(dummy: DummyBackend, handled: list[str]) -> None:
    for _ in range(3):
        cancelled()
    assert [deliver_due(limit=2).handled, deliver_due(limit=2).handled] == [2, 1]


def test_handlers__all_or_nothing(dummy: DummyBackend, handled: Any, settings: Any) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.book", f"{helpers.__name__}.explode"]
    settings.RUN_CANCEL_MAX_ATTEMPTS = 2
    run = cancelled()
    rows = get_run_model()._default_manager
    for state in ("pending", "failed"):
        report = deliver_due()
        assert (report.handled, report.failed) == (0, 1)
        item = item_of(run)
        assert (item.handling, item.handling_error) == (state, "ValueError: handler is broken")
        assert rows.count() == 1  # what the first handler did is undone
        pass_time(100)
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.book"]
    assert retry_deliveries() == 1
    assert deliver_due().handled == 1
    item = item_of(run)
    assert (item.handling, item.handling_error, rows.count()) == ("delivered", "", 2)


def test_handlers__one_that_fails_holds_nobody_up(
    dummy: DummyBackend, handled: Any, settings: Any
) -> None:
    cancelled()
    settings.RUN_CANCEL_HANDLERS = ["nowhere.handler"]
    assert deliver_due().failed == 1
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.book"]
    cancelled()
    assert deliver_due().handled == 1


def test_handlers__whose_lease_ran_out(dummy: DummyBackend, handled: Any, monkeypatch: Any) -> None:
    """This process was held up after the claim, and another worker has come."""
    real, late = outbox.claim_due, []

    def claim(queue: Any, *args: Any, **lookups: Any) -> Any:
        claim = real(queue, *args, **lookups)
        if queue == outbox.HANDLING and claim and not late:
            late.append(claim)
            claim.rows().update(handling="delivered")
        return claim

    monkeypatch.setattr(outbox, "claim_due", claim)
    cancelled()
    cancelled()
    assert deliver_due().handled == 1
    assert len(handled) == 1


def test_handler_that_catches_an_error_of_the_database(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{helpers.__name__}.swallow"]
    run = cancelled()
    report = deliver_due()
    item = item_of(run)
    assert (report.handled, report.failed) == (0, 1)
    assert (item.handling, item.handling_attempts) == ("pending", 1)
    assert "If a handler caught an error of the database" in item.handling_error
    assert get_run_model()._default_manager.count() == 1


def deadlock(item: CancellationItem) -> None:
    """Catch that the database has undone the transaction, and go on as if it had not."""
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN")
    helpers.book(item)


def test_handler_that_catches_a_deadlock(dummy: DummyBackend, handled: Any, settings: Any) -> None:
    """On MySQL it undoes everything, and what comes after it would be done twice."""
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.deadlock"]
    run = cancelled()
    assert deliver_due().failed == 1
    assert item_of(run).handling == "pending"
    assert "not marked any more" in item_of(run).handling_error
    assert get_run_model()._default_manager.count() == 1
    assert handled == [run.run_id]


def test_handlers__take_no_more_than_their_time(
    dummy: DummyBackend, handled: list[str], monkeypatch: Any
) -> None:
    """Executors wait to be told in the meantime."""
    monkeypatch.setattr(handlers, "STEP_SECONDS", 0)
    for _ in range(3):
        cancelled()
    assert [deliver_due().handled for _ in range(4)] == [0, 0, 0, 0]
    monkeypatch.setattr(handlers, "STEP_SECONDS", 60)
    assert deliver_due().handled == 3


def handle_slowly(item: CancellationItem) -> None:
    SLOW.wait(20)


SLOW = threading.Event()


@pytest.mark.skipif(IS_SQLITE, reason="SQLite locks no rows")
def test_slow_handler__keeps_no_other_worker_waiting(dummy: DummyBackend, settings: Any) -> None:
    """It has locked its item, which is also due to be told, to be escalated and so on."""
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.handle_slowly"]
    SLOW.clear()
    run = cancelled()
    claim = claim_all()

    def work() -> None:
        handlers.handle_due(1)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    while item_of(run).handling_attempts == 0:
        time.sleep(0.01)
    time.sleep(0.1)
    other = cancelled()
    began = time.monotonic()
    step._deliver(claim, step.DeliveryReport())
    settings.RUN_CANCEL_HANDLERS = []
    assert deliver_due().delivered == 1
    CancellationItem.objects.filter(run_id=other.run_id).update(
        escalates_at=timezone.now() - timedelta(seconds=1)
    )
    assert deliver_due().escalated == 1
    assert time.monotonic() - began < 5
    SLOW.set()
    thread.join()
    assert item_of(run).handling == "delivered"
    assert item_of(run).delivery == "pending"  # told again, after its lease


def leave(item: CancellationItem) -> None:
    """Call something that ends the process, as command line tools do."""
    sys.exit("no licence")


def test_handlers__one_that_exits_has_failed(dummy: DummyBackend, settings: Any) -> None:
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.leave"]
    run = cancelled()
    assert deliver_due().failed == 1
    assert (item_of(run).handling, item_of(run).handling_error) == (
        "pending",
        "SystemExit: no licence",
    )


class Death(BaseException):
    """In the place of the end of the process."""


def die(item: CancellationItem) -> None:
    if item.run_id in HANDLED:
        raise Death
    make_run(RunStatus.COMPLETED, title=f"refund of {item.run_id}")


def test_handlers__one_that_kills_the_worker_fails_in_the_end(
    dummy: DummyBackend, handled: list[str], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And costs no other item an attempt."""
    settings.RUN_CANCEL_HANDLERS = [f"{__name__}.die"]
    settings.RUN_CANCEL_MAX_ATTEMPTS = 3
    deadly, other = cancelled(), cancelled()
    handled.append(deadly.run_id)
    deaths = 0
    for _ in range(6):
        try:
            deliver_due()
        except Death:
            deaths += 1
        pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
    assert deaths == 3
    assert (item_of(deadly).handling, item_of(deadly).handling_attempts) == ("failed", 3)
    assert item_of(deadly).handling_error == "The worker ended during the last attempt."
    assert (item_of(other).handling, item_of(other).handling_attempts) == ("delivered", 1)
    assert "has failed: The worker ended" in caplog.text
    # One that has no attempt left does not end the step.
    CancellationItem.objects.filter(run_id=deadly.run_id).update(
        handling="pending", next_handling_at=timezone.now() - timedelta(days=1)
    )
    third = cancelled()
    assert deliver_due().handled == 1
    assert [item_of(run).handling for run in (deadly, third)] == ["failed", "delivered"]
    assert retry_deliveries() == 1


class Deadly(BaseBackend):
    """Ends the process."""

    ends: BaseException = Death()

    def stop(self, requests: Sequence[StopRequest], *, force: bool) -> Any:
        raise self.ends


def test_backend_that_kills_the_worker__costs_no_other_an_attempt(
    dummy: DummyBackend, settings: Any
) -> None:
    settings.RUN_CANCEL_BACKENDS = {
        "a-deadly": {"BACKEND": f"{__name__}.Deadly"},
        **settings.RUN_CANCEL_BACKENDS,
    }
    settings.RUN_CANCEL_MAX_ATTEMPTS = 2
    deadly, other = cancelled(backend="a-deadly"), cancelled()
    for _ in range(2):
        with pytest.raises(Death):
            deliver_due()
        pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
    assert not deliver_due()
    assert (item_of(other).delivery, item_of(other).attempts) == ("delivered", 1)
    assert (item_of(deadly).delivery, item_of(deadly).attempts) == ("failed", 2)


def test_backend_that_exits__has_failed(
    dummy: DummyBackend, settings: Any, monkeypatch: Any
) -> None:
    settings.RUN_CANCEL_BACKENDS = {"mine": {"BACKEND": f"{__name__}.Deadly"}}
    monkeypatch.setattr(Deadly, "ends", SystemExit("no licence"))
    run = cancelled(backend="mine")
    assert deliver_due().failed == 1
    assert item_of(run).last_error == "SystemExit: no licence"


def test_no_handlers__nothing_is_pending(dummy: DummyBackend) -> None:
    assert item_of(cancelled()).handling == "not_needed"


def test_queue_size(dummy: DummyBackend, handled: Any) -> None:
    assert set(queue_size().values()) == {0}
    cancelled()
    pass_time(7)
    assert queue_size() == {
        "delivery_pending": 1,
        "delivery_failed": 0,
        "handling_pending": 1,
        "handling_failed": 0,
        "dispatch_pending": 0,
        "stopping": 1,
        "bulk_pending": 0,
        "oldest_due_seconds": 7,
    }


def test_rolled_back_cancellation__tells_nobody(dummy: DummyBackend) -> None:
    run = make_run(RunStatus.RUNNING)
    with transaction.atomic():
        cancel_runs([run.run_id], requested_by="tests")
        transaction.set_rollback(True)
    assert not deliver_due()
    assert dummy.stopped == []
