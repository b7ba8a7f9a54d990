"""Workers that die, are late, or work at the same time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_run_cancel.backends import BaseBackend, StopOutcome, StopRequest
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import (
    deliver_due,
    outbox,
)
from django_run_cancel.states import RunStatus
from django_run_cancel.testing import DummyBackend
from tests.delivery.helpers import (
    Death,
    cancelled,
    claim_all,
    deliver_all,
    item_of,
    look_again,
    pass_time,
    state_of,
)
from tests.helpers import IS_SQLITE, ids, make_run, make_runs


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
            deliver_all(limit=10)
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


def test_rolled_back_cancellation__tells_nobody(dummy: DummyBackend) -> None:
    run = make_run(RunStatus.RUNNING)
    with transaction.atomic():
        cancel_runs([run.run_id], requested_by="tests")
        transaction.set_rollback(True)
    assert not deliver_due()
    assert dummy.stopped == []
