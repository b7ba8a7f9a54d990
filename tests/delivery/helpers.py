"""Backends and handlers that misbehave, and short ways to cancelled runs and their items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.db import IntegrityError
from django.utils import timezone

from django_run_cancel.backends import BaseBackend, StopOutcome, StopRequest
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due, watchdog
from django_run_cancel.delivery.outbox import DELIVERY, Claim, claim_due
from django_run_cancel.delivery.rotation import Rotation
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import RunStatus
from tests.helpers import make_run

HANDLED: list[str] = []


def book(item: CancellationItem) -> None:
    """Do what must happen once: here, a run more in the table."""
    make_run(RunStatus.COMPLETED, title=f"refund of {item.run_id}")
    HANDLED.append(item.run_id)


def explode(item: CancellationItem) -> None:
    make_run(RunStatus.COMPLETED, title="undone")
    raise ValueError("handler is broken")


def swallow(item: CancellationItem) -> None:
    """Catch what the database has already undone the transaction for."""
    with suppress(IntegrityError):
        make_run(RunStatus.COMPLETED, run_id=item.run_id)


class Exploding(BaseBackend):
    """Breaks the rule that stop() does not raise."""

    def stop(self, requests: Sequence[StopRequest], *, force: bool) -> Any:
        raise RuntimeError("boom")


class Mute(BaseBackend):
    """Cannot force, and says nothing about what it was told."""

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        return {}


class Listing(BaseBackend):
    """Answers with something else than it should."""

    def stop(self, requests: Sequence[StopRequest], *, force: bool) -> Any:
        return [request.external_id for request in requests]


class Nodding(BaseBackend):
    """Answers with something that is no outcome."""

    def stop(self, requests: Sequence[StopRequest], *, force: bool) -> Any:
        return {request.external_id: True for request in requests}


class Death(BaseException):
    """In the place of the end of the process."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Speechless(BaseBackend):
    """Fails, and cannot say why."""

    def stop(self, requests: Sequence[StopRequest], *, force: bool) -> Any:
        raise Unspeakable


class Gentle(Mute):
    """Cannot force, and keeps what it is told."""

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        return {request.external_id: StopOutcome.TOLD for request in requests}


class Unsure(Gentle):
    """Does not know what it can."""

    @property
    def can_force(self) -> bool:  # type: ignore[override]
        raise RuntimeError("cannot tell")


TIMES = (
    *("next_attempt_at", "claimed_until", "escalates_at"),
    *("next_handling_at", "handling_claimed_until"),
)


def cancelled(status: str = RunStatus.RUNNING, force: bool = False, **fields: Any) -> Any:
    run = make_run(status, **{"external_id": "job", **fields})
    cancel_runs([run.run_id], requested_by="tests", force=force)
    return run


def item_of(run: Any) -> CancellationItem:
    return CancellationItem.objects.get(run_id=run.run_id, outcome="cancelled")


def state_of(run: Any) -> tuple[str, str]:
    run.refresh_from_db()
    return item_of(run).delivery, run.stop_state


def look_again() -> None:
    """Let the next step look at all runs, whenever that was done before."""
    for name in ("_escalating", "_stopping", "_running"):
        setattr(watchdog, name, Rotation(getattr(watchdog, name)._field))


def pass_time(seconds: float) -> None:
    """Shift all that is written down into the past."""
    look_again()
    ago = timedelta(seconds=seconds)
    for item in CancellationItem.objects.all():
        for name in TIMES:
            value = getattr(item, name)
            setattr(item, name, value and value - ago)
        item.save()
    for run in get_run_model()._default_manager.filter(finished_at__isnull=False):
        type(run).objects.filter(pk=run.pk).update(finished_at=run.finished_at - ago)


def claim_all() -> Claim:
    """Claim all that is due to be told, as a worker does that is killed after it."""
    claim = claim_due(DELIVERY, 100)
    assert claim is not None
    return claim


def deliver_all(limit: int = 100) -> None:
    """Do steps until one has nothing to do, as the command does."""
    for _ in range(1000):
        if not deliver_due(limit):
            return
    raise AssertionError("Each step says that there is more to do.")


def created(**fields: Any) -> Any:
    return make_run(RunStatus.CREATED, backend="", external_id="", **fields)


def let_dispatches_fall_due(**fields: Any) -> None:
    """Make runs that are to be handed over again due now."""
    get_run_model()._default_manager.filter(dispatch_due_at__isnull=False).update(
        dispatch_due_at=timezone.now() - timedelta(seconds=1), **fields
    )
