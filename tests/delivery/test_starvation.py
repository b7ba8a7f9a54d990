"""Rows that cannot be written, and items that end the worker, keep no others waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_run_cancel.backends import BaseBackend, StopOutcome, StopRequest
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due, outbox, step
from django_run_cancel.delivery.outbox import DELIVERY
from django_run_cancel.delivery.watchdog import presume
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import Delivery, RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import (
    cancelled,
    claim_all,
    deliver_all,
    item_of,
    look_again,
    pass_time,
    state_of,
)
from tests.helpers import (
    IS_POSTGRESQL,
    IS_SQLITE,
    ids,
    locked_elsewhere,
    make_run,
    make_runs,
    refusing,
)

LIMIT = 5
BAD = "bad"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _fresh_positions() -> Iterator[None]:
    outbox._rotations.clear()
    yield
    outbox._rotations.clear()


def cancelled_long_ago(title: str) -> Any:
    run = cancelled(backend="", external_id="", title=title)
    get_run_model().objects.filter(pk=run.pk).update(finished_at=timezone.now() - HOUR)
    return run


def silent(title: str) -> Any:
    ago = timezone.now() - HOUR
    return make_run(RunStatus.RUNNING, title=title, started_at=ago, heartbeat_at=ago)


def undispatched(title: str) -> Any:
    ago = timezone.now() - HOUR
    return make_run(title=title, queued_at=ago, dispatch_due_at=ago)


def is_presumed(run: Any) -> bool:
    return state_of(run)[1] == "presumed"


def has_status(status: str) -> Callable[[Any], bool]:
    def check(run: Any) -> bool:
        run.refresh_from_db()
        return bool(run.status == status)

    return check


def is_dispatched(run: Any) -> bool:
    run.refresh_from_db()
    return run.dispatch_due_at is None


KINDS = {
    "presuming": (cancelled_long_ago, is_presumed),
    "timing out": (silent, has_status(RunStatus.TIMED_OUT)),
    "dispatching": (undispatched, is_dispatched),
}


@contextmanager
def refused(runs: Sequence[Any]) -> Iterator[None]:
    with refusing(get_run_model(), f"NEW.title = '{BAD}'"):
        yield


def locked(runs: Sequence[Any]) -> AbstractContextManager[None]:
    return locked_elsewhere(*runs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "hold",
    [refused, pytest.param(locked, marks=pytest.mark.skipif(IS_SQLITE, reason="locks no rows"))],
)
def test_runs_that_cannot_be_written(
    hold: Callable[..., Any], kind: str, dummy: DummyBackend, settings: Any
) -> None:
    """However many there are, the run behind them gets its turn."""
    settings.RUN_CANCEL_STALLED_SECONDS = 60
    make, is_done = KINDS[kind]
    bad = [make(BAD) for _ in range(3 * LIMIT)]
    good = make("good")
    with hold(bad):
        for _ in range(5):
            deliver_due(LIMIT)
        assert is_done(good)
        assert not any(map(is_done, bad))
    look_again()
    for _ in range(5):
        deliver_due(LIMIT)
    assert all(map(is_done, bad))


def test_run_that_cannot_be_written__by_steps_of_one(dummy: DummyBackend) -> None:
    bad, good = cancelled_long_ago(BAD), cancelled_long_ago("good")
    with refused([bad]):
        assert [presume(limit=1), presume(limit=1)] == [0, 1]
    assert is_presumed(good)


def refused_items() -> AbstractContextManager[None]:
    return refusing(CancellationItem, "NEW.external_id = 'bad'")


def test_items_that_cannot_be_written__to_be_told(dummy: DummyBackend) -> None:
    cancel_runs(
        ids([make_run("running", external_id="bad") for _ in range(3 * LIMIT)]), requested_by="x"
    )
    good = cancelled()
    with refused_items():
        for _ in range(5):
            deliver_due(LIMIT)
        assert state_of(good)[0] == "delivered"
    for _ in range(5):
        deliver_due(LIMIT)
    assert not CancellationItem.objects.exclude(delivery="delivered").exists()


def test_behind_the_last_item__starts_again(dummy: DummyBackend) -> None:
    """A step that has nothing to report says that nothing is due."""
    for _ in range(LIMIT):
        cancelled(external_id="bad")
    with refused_items():
        assert not deliver_due(LIMIT)
    assert deliver_due(LIMIT).delivered == LIMIT


def test_items_that_cannot_be_written__to_be_escalated(dummy: DummyBackend) -> None:
    bad = [cancelled(external_id="bad") for _ in range(3 * LIMIT)]
    good = cancelled()
    deliver_all(LIMIT)
    pass_time(31)
    with refused_items():
        for _ in range(5):
            deliver_due(LIMIT)
        assert item_of(good).force
        assert not any(item_of(run).force for run in bad)


def test_items_that_cannot_be_written__to_be_handled(dummy: DummyBackend, handled: Any) -> None:
    for _ in range(3 * LIMIT):
        cancelled(external_id="bad")
    good = cancelled()
    with refused_items():
        for _ in range(3):
            deliver_due(2 * LIMIT)
        assert good.run_id in handled


class Death(BaseException):
    """What ends the process, as far as its rows are concerned."""


class EndsTheProcess(BaseBackend):
    """Ends the process for one external id."""

    def stop(self, requests: Sequence[StopRequest], *, force: bool) -> Any:
        if any(request.external_id == BAD for request in requests):
            raise Death
        return {request.external_id: StopOutcome.TOLD for request in requests}


def test_item_that_ends_the_worker__fails_alone(dummy: DummyBackend, settings: Any) -> None:
    """What was claimed together with it is claimed singly, and is told."""
    settings.RUN_CANCEL_BACKENDS = {"mortal": {"BACKEND": f"{__name__}.EndsTheProcess"}}
    settings.RUN_CANCEL_MAX_ATTEMPTS = 3
    runs = [make_run("running", backend="mortal", external_id=f"job{n}") for n in range(20)]
    runs.insert(10, make_run("running", backend="mortal", external_id=BAD))
    cancel_runs(ids(runs), requested_by="tests")
    deaths = 0
    for _ in range(6):
        try:
            deliver_due()
        except Death:
            deaths += 1
        pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
    assert deaths == 3
    found = CancellationItem.objects.values_list("external_id", "delivery")
    assert {pair for pair in found if pair[1] != Delivery.DELIVERED} == {(BAD, Delivery.FAILED)}


@pytest.mark.parametrize("pending", [10, 500])
def test_claims__do_not_depend_on_configured_aliases(
    dummy: DummyBackend, settings: Any, pending: int
) -> None:
    path = "django_run_cancel.testing.DummyBackend"
    counts = []
    for aliases in (1, 20):
        others = {f"other{number}": {"BACKEND": path} for number in range(aliases)}
        settings.RUN_CANCEL_BACKENDS = {"dummy": {"BACKEND": path}, **others}
        cancel_runs(ids(make_runs(pending, RunStatus.RUNNING)), requested_by="tests")
        look_again()
        with CaptureQueriesContext(connection) as captured:
            assert deliver_due().delivered == min(pending, 100)
        counts.append(len(captured))
        deliver_all(1000)
    assert counts[0] == counts[1]


@pytest.mark.skipif(not IS_POSTGRESQL, reason="asks PostgreSQL for its plans")
def test_claims_and_records__read_no_more_than_their_items(dummy: DummyBackend) -> None:
    for _ in range(5):
        cancel_runs(ids(make_runs(1_000, RunStatus.RUNNING)), requested_by="tests")
    plans: list[str] = []

    def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE"):
            execute(f"EXPLAIN {sql}", params, many, context)
            plans.append(str(context["cursor"].fetchall()))
        return execute(sql, params, many, context)

    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    with connection.execute_wrapper(explain):
        assert deliver_due(100).delivered == 100
    assert len(plans) == 2
    assert not [plan for plan in plans if "Seq Scan" in plan]


def test_claimed_by_another_worker_meanwhile(dummy: DummyBackend, monkeypatch: Any) -> None:
    cancelled()
    monkeypatch.setattr(outbox, "claim_due", lambda *args, **lookups: None)
    assert not deliver_due()
    assert dummy.stopped == []


def test_claimed_by_another_worker_between_reading_and_writing(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    """One of several is: the others are told at once, and do not wait for the claim's end."""
    theirs, *mine = [cancelled(external_id=f"job {n}") for n in range(3)]

    def claimed_meanwhile() -> UUID:
        values = {"claimed_by": uuid4(), "claimed_until": timezone.now() + timedelta(hours=1)}
        CancellationItem.objects.filter(run_id=theirs.run_id).update(**values)
        monkeypatch.undo()
        return uuid4()

    monkeypatch.setattr(outbox, "uuid4", claimed_meanwhile)
    assert deliver_due().delivered == 2
    told = {request.run_id for request, _ in dummy.stopped}
    assert told == {run.run_id for run in mine}


@pytest.mark.parametrize(
    ("recorded", "delivery"),
    [
        ({"delivery": "delivered", "claimed_by": None, "claimed_until": None}, "delivered"),
        ({"attempts": 0}, "pending"),
    ],
)
def test_spent_item__of_which_something_is_recorded_meanwhile(
    dummy: DummyBackend,
    settings: Any,
    monkeypatch: Any,
    caplog: Any,
    recorded: dict[str, Any],
    delivery: str,
) -> None:
    """By its slow owner, or by somebody who retries it."""
    settings.RUN_CANCEL_MAX_ATTEMPTS = 1
    run = cancelled()
    claim_all()
    pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)

    def has_no_attempts_left(queue: Any, item: CancellationItem) -> bool:
        CancellationItem.objects.filter(pk=item.pk).update(**recorded)
        return True

    monkeypatch.setattr(outbox, "_has_no_attempts_left", has_no_attempts_left)
    assert outbox.claim_abandoned(DELIVERY) is not None
    assert item_of(run).delivery == delivery
    assert "has failed" not in caplog.text


def test_abandoned_items__no_more_than_the_limit(dummy: DummyBackend) -> None:
    for _ in range(3):
        cancelled()
    claim_all()
    pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
    assert [deliver_due(limit=2).delivered for _ in range(3)] == [2, 1, 0]


def test_abandoned_items__for_which_no_time_is_left_keep_their_attempts(
    dummy: DummyBackend, monkeypatch: Any
) -> None:
    """What is not told in this step is not claimed either."""
    for _ in range(3):
        cancelled()
    claim_all()
    pass_time(outbox.CLAIM_DURATION.total_seconds() + 1)
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    real = DummyBackend.stop

    def slow(self: DummyBackend, requests: Any, *, force: bool) -> Any:
        clock.now += 0.6 * step.ABANDONED_SECONDS
        return real(self, requests, force=force)

    monkeypatch.setattr(step, "time", clock)
    monkeypatch.setattr(DummyBackend, "stop", slow)
    assert deliver_due().delivered == 2
    assert sorted(CancellationItem.objects.values_list("attempts", flat=True)) == [1, 2, 2]
    assert deliver_due().delivered == 1
