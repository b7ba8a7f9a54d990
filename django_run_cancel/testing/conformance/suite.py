"""The conformance suite: tests that every backend must pass with its real executor.

A backend's test module defines a ``Harness`` and subclasses ``BackendConformance``, or
``BrokerConformance`` if its jobs wait in a broker. ``WorkerConformance`` has the tests that may
have other results with another kind of worker of the same executor.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from django_run_cancel.backends import StopOutcome, StopRequest
from django_run_cancel.delivery import retry_deliveries
from django_run_cancel.exceptions import RunCancelError
from django_run_cancel.models import CancellationItem, get_run_model
from django_run_cancel.states import Delivery, RunStatus, StopState
from django_run_cancel.testing import jobs
from django_run_cancel.testing.conformance.cases import ExecutorCase
from django_run_cancel.testing.conformance.harness import Harness
from django_run_cancel.testing.helpers import wait_until

TIMEOUTS_AT_MOST = 50
"""Maximum duration of a stop of 100 jobs, in timeouts: half of one timeout for each job."""


class WorkerConformance(ExecutorCase):
    """Tests of how a worker executes, stops and retries jobs."""

    def test_runs_what_is_dispatched_once(self, harness: Harness) -> None:
        harness.online()
        (run,) = self.send("returns")
        self.wait_for(RunStatus.COMPLETED, run)
        self.backend.dispatch(run)
        self.drain()
        assert self.trace(run) == ["started", "left"]

    def test_cancelled_in_the_queue_of_a_busy_worker(self, harness: Harness) -> None:
        harness.online()
        busy = self.started("checks")
        queued = self.send("returns", 3)
        self.cancel(*queued, busy)
        self.told(busy, running=True)
        self.told(*queued)
        self.drain()
        assert [self.trace(run) for run in queued] == [[]] * 3

    def test_running__stops_within_the_grace(self, harness: Harness) -> None:
        harness.online()
        run = self.started("checks")
        self.cancel(run)
        assert self.stop_state(run) == "stopping"
        self.told(run, running=True)
        self.wait_for_end(run)
        self.wait_for_stop_state("acknowledged", run)

        assert run.status == RunStatus.CANCELLED

    def test_running__asked_without_checkpoints(self, harness: Harness) -> None:
        harness.online()
        run = self.started("never_checks")
        self.cancel(run)
        (outcome,) = self.told(run, running=True)
        if self.backend.can_stop_running:
            self.wait_for_end(run)
        else:
            assert outcome is StopOutcome.UNSUPPORTED
            self.goes_on(run)

    def test_running__force(self, harness: Harness) -> None:
        harness.online()
        run = self.started("swallows_exceptions")
        self.cancel(run)
        if not self.backend.can_force:
            assert StopOutcome.STOPPED not in self.told(run, running=True, force=True)
            self.goes_on(run)
            return
        wait_until(
            lambda: self.told(run, running=True, force=True) == [StopOutcome.STOPPED],
            "the confirmation",
        )
        ended = self.trace(run)
        time.sleep(0.5)
        assert self.trace(run) == ended
        assert "left" not in ended

    def test_running__delivery_escalates(self, harness: Harness, settings: Any) -> None:
        """The delivery worker first sends a stop request without force, then one with force."""
        settings.RUN_CANCEL_GRACE_SECONDS = 2
        harness.online()
        run = self.started("swallows_exceptions")
        self.cancel(run)
        self.deliver()
        assert self.stop_state(run) == StopState.STOPPING
        if not self.backend.can_force:
            self.goes_on(run)
            settings.RUN_CANCEL_PRESUME_SECONDS = 0.5

        def has_stopped() -> bool:
            self.deliver()
            return self.stop_state(run) != StopState.STOPPING

        wait_until(has_stopped, "the evidence")
        assert run.stop_state == (
            StopState.KILLED if self.backend.can_force else StopState.PRESUMED
        )

    def test_retry_never_resurrects(self, harness: Harness) -> None:
        """The executor retries a job whose run was cancelled during a try, or between two tries."""
        harness.online()
        during = self.started("fails_when_told")
        self.cancel(during)
        (harness.folder / f"{during.run_id}.fail").touch()
        self.wait_for_end(during)
        (between,) = self.send("fails_once")
        self.wait_for_end(between)
        self.wait_for(RunStatus.QUEUED, between)
        self.cancel(between)
        # The job that is sent last is retried last.
        (control,) = self.send("fails_once")
        self.wait_for(RunStatus.COMPLETED, control)
        assert self.trace(control).count("started") == 2
        assert self.trace(during).count("started") == 1
        assert self.trace(between).count("started") == 1
        assert self.statuses(during, between) == ["cancelled", "cancelled"]

    def test_tries_are_used_up__the_run_has_failed(self, harness: Harness) -> None:
        """The run does not stay queued for a retry that the executor never starts."""
        harness.online()
        (run,) = self.send("fails_always")
        self.wait_for(RunStatus.FAILED, run)
        assert self.trace(run).count("started") == jobs.TRIES
        run.refresh_from_db()
        assert run.failure_reason == "django_run_cancel.testing.jobs.JobFailed"

    def test_abilities_are_declared(self) -> None:
        for name in ("can_stop_running", "can_force"):
            assert isinstance(getattr(self.backend, name), bool)
        assert [message.id for message in self.backend.check()] == self.executor.checks


class TrackedConformance(WorkerConformance):
    """The same tests for tasks of a host that an integration makes runs: ``Harness.publish()``."""

    @pytest.fixture(autouse=True)
    def _tracked(self, harness: Harness, settings: Any) -> Iterator[None]:
        settings.RUN_CANCEL_DESCRIBE = f"{jobs.__name__}.describe"
        yield
        # A task that is still in the broker would create its run again after the flush.
        harness.kill()
        harness.tear_down()

    def send(self, title: str, count: int = 1) -> list[Any]:
        task_ids = [self.executor.publish(title) for _ in range(count)]
        return [get_run_model()._default_manager.get(run_id=task_id) for task_id in task_ids]

    def test_runs_what_is_dispatched_once(self, harness: Harness) -> None:
        harness.online()
        (run,) = self.send("returns")
        self.wait_for(RunStatus.COMPLETED, run)
        assert self.trace(run) == ["started", "left"]


class BackendConformance(WorkerConformance):
    """All tests that every backend must pass."""

    def test_dispatched_twice_runs_once(self, harness: Harness) -> None:
        harness.kill()
        (run,) = self.send("returns")
        self.backend.dispatch(run)
        self.drain()
        self.wait_for(RunStatus.COMPLETED, run)
        assert self.trace(run) == ["started", "left"]

    def test_cancelled_while_the_worker_is_offline(self, harness: Harness) -> None:
        harness.kill()
        told, untold, other = self.send("returns", 3)
        self.cancel(told, untold)
        self.told(told)
        self.drain()
        self.wait_for(RunStatus.COMPLETED, other)
        assert self.trace(told) == self.trace(untold) == []
        assert self.statuses(told, untold) == ["cancelled", "cancelled"]

    def test_unknown_finished_and_repeated(self, harness: Harness) -> None:
        harness.online()
        (finished,) = self.send("returns")
        self.wait_for(RunStatus.COMPLETED, finished)
        unknown = self.make_run()
        unknown.external_id = self.backend.new_external_id(unknown)
        for force in (False, True):
            for running in (False, True):
                for _ in range(2):
                    self.told(finished, unknown, running=running, force=force)
        assert self.stop() == []
        assert self.trace(finished) == ["started", "left"]
        self.drain()

    def test_repeated__one_call_and_running(self, harness: Harness) -> None:
        harness.online()
        run = self.started("checks")
        self.cancel(run)
        request = StopRequest(run.run_id, run.external_id, True)
        assert len(self.backend.stop([request, request], force=False)) == 1
        self.told(run, running=True)
        self.wait_for_end(run)
        self.told(run, running=True)

    def test_job_that_waits_although_its_run_was_running(self, harness: Harness) -> None:
        """Dropping the waiting job does not prove that the running code has stopped."""
        harness.kill()
        (run,) = self.send("returns")
        for _ in range(2):
            assert StopOutcome.STOPPED not in self.told(run, running=True)

    def test_a_hundred(self, harness: Harness) -> None:
        harness.kill()
        runs = self.send("returns", 20)
        unknown = [self.make_run(external_id=str(uuid.uuid4())) for _ in range(80)]
        self.cancel(*runs, *unknown)
        began = time.monotonic()
        self.told(*self.known_ids(runs, unknown))
        assert time.monotonic() - began < TIMEOUTS_AT_MOST * harness.timeout
        self.drain()
        assert [self.trace(run) for run in runs] == [[]] * 20

    def known_ids(self, runs: list[Any], unknown: list[Any]) -> list[Any]:
        """Return a hundred runs, some of them dispatched."""
        for run in unknown:
            run.external_id = self.backend.new_external_id(run)
        return [*runs, *unknown]

    @pytest.mark.parametrize("step", ["queued", "cancelled", "told"])
    def test_worker_is_killed__before_the_job_ran(self, harness: Harness, step: str) -> None:
        harness.online()
        busy = self.started("never_checks")
        (run,) = self.send("returns")
        for now, act in (
            ("queued", lambda: None),
            ("cancelled", lambda: self.cancel(run, busy)),
            ("told", lambda: self.told(run)),
        ):
            act()
            if now == step:
                harness.kill()
        self.drain()
        assert self.trace(run) == []
        assert self.trace(busy).count("started") == 1
        assert self.statuses(run, busy) == ["cancelled", "cancelled"]

    @pytest.mark.parametrize("step", ["started", "cancelled", "told"])
    def test_worker_is_killed__while_the_job_ran(self, harness: Harness, step: str) -> None:
        harness.online()
        run = self.started("swallows_exceptions")
        for now, act in (
            ("started", lambda: None),
            ("cancelled", lambda: self.cancel(run)),
            ("told", lambda: self.told(run, running=True)),
        ):
            act()
            if now == step:
                harness.kill()
        harness.kill()
        self.drain()
        self.told(run, running=True, force=True)
        assert self.trace(run).count("started") == 1
        assert self.statuses(run) == ["cancelled"]


class BrokerConformance(BackendConformance):
    """Additional tests for backends whose jobs wait in a broker, which may be unavailable."""

    @pytest.mark.parametrize("how", ["refused", "silent"])
    def test_broker_is_down(self, harness: Harness, how: Literal["refused", "silent"]) -> None:
        """A call takes one timeout, not one for each id, also with existing connections."""
        harness.kill()
        runs = self.send("returns", 2)
        many = [*runs, *(self.make_run(external_id=str(uuid.uuid4())) for _ in range(98))]
        self.cancel(*runs)
        harness.proxy.down(how)
        for force, running in ((False, False), (True, True)):
            began = time.monotonic()
            outcomes = self.stop(*many, force=force, running=running)
            assert time.monotonic() - began < TIMEOUTS_AT_MOST * harness.timeout
            assert all(isinstance(outcome, Exception) for outcome in outcomes), outcomes
        with pytest.raises(RunCancelError):
            self.send("returns")
        (message, *_) = self.backend.check(deploy=True)
        assert message.id == "django_run_cancel.W005"
        harness.proxy.up()
        messages = self.backend.check(deploy=True)
        assert [message.id for message in messages] == harness.checks
        self.told(*runs)
        self.drain()
        assert [self.trace(run) for run in runs] == [[], []]

    def test_broker_is_down__then_delivered(self, harness: Harness, settings: Any) -> None:
        """What is cancelled during the outage is delivered after it, or else on request."""
        harness.kill()
        runs = given_up, pending = self.send("returns", 2)
        settings.RUN_CANCEL_MAX_ATTEMPTS = 2
        harness.proxy.down("refused")
        for run in runs:
            self.cancel(run)
            self.deliver()
        items = CancellationItem.objects.filter(run_id__in=[run.run_id for run in runs])
        assert {(item.run_id, item.delivery, bool(item.last_error)) for item in items} == {
            (given_up.run_id, "failed", True),
            (pending.run_id, "pending", True),
        }
        harness.proxy.up()
        assert retry_deliveries(items) == 1
        self.deliver()
        assert not [item.last_error for item in items.all() if item.last_error]
        if self.backend.keeps_requests:
            assert {item.delivery for item in items.all()} == {Delivery.DELIVERED}
        self.drain()
        assert [self.trace(run) for run in runs] == [[], []]
