"""What every backend must do with its real executor, in a worker process that can be killed.

A backend's test module gives a :class:`Harness` and subclasses :class:`BackendContract`, or
:class:`BrokerContract` when its jobs wait in a broker that can be away. :class:`PoolContract` is
the part that another kind of worker of the same executor may answer differently.

The job calls ``jobs.body`` inside an ``execution`` of the run. The worker runs one job at a time,
and tries one that raised ``jobs.Oops`` again after a second or two, ``jobs.TRIES`` times in all.
Until then its run is ``queued``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.utils import timezone
from redis import Redis

from django_run_cancel import services
from django_run_cancel.backends import get_backend
from django_run_cancel.backends.base import BaseBackend, StopOutcome, StopRequest
from django_run_cancel.delivery import deliver_due
from django_run_cancel.exceptions import RunCancelError
from django_run_cancel.models import CancellationItem
from django_run_cancel.states import Delivery, RunStatus, StopState
from tests.api.servers import database_url
from tests.backends import jobs
from tests.backends.jobs import FOLDER, traced
from tests.backends.services import URLS, Proxy, proxy, require_service
from tests.helpers import make_run, statuses

ROOT = Path(__file__).resolve().parent.parent.parent
ALIAS = "tested"
TIMEOUT = 1.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.02)


class Harness:
    """An executor: how our side reaches it, and how its worker is started and killed.

    Attributes:
        backend: Dotted path of the backend.
        service: The broker, a key of ``services.URLS``; None when it is the database itself.
        checks: Ids of the system checks that always speak up.
        ready: What the worker logs when it takes jobs; the whole log is in ``log``.
        proxy: What our side reaches the broker through; the worker does not.
        name: Unique, for queues.
    """

    backend: ClassVar[str]
    service: ClassVar[str | None] = None
    checks: ClassVar[list[str]] = []
    ready: ClassVar[str]

    def __init__(self, folder: Path, through: Proxy | None) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self.name = f"tested-{uuid.uuid4().hex[:12]}"
        self._through = through
        self._worker: subprocess.Popen[bytes] | None = None

    @property
    def proxy(self) -> Proxy:
        assert self._through is not None
        return self._through

    def options(self) -> dict[str, Any]:
        """Return the OPTIONS of the backend."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command line of the worker, without Python itself."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what the worker finds in its environment besides the database."""
        return {}

    def set_up(self) -> None:
        """Prepare our side, before the backend is made."""

    def tear_down(self) -> None:
        """Remove what was left in the broker."""

    def online(self) -> None:
        """Start the worker unless it runs, and wait until it takes jobs."""
        if self._worker is not None:
            return
        environment = {
            **os.environ,
            **self.environment(),
            FOLDER: str(self.folder),
            "DATABASE_URL": database_url(),
            "DJANGO_SETTINGS_MODULE": "tests.backends.worker_settings",
            "PYTHONUNBUFFERED": "1",
        }
        with self.log.open("wb") as log:
            self._worker = subprocess.Popen(
                [sys.executable, *self.command()],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._is_ready, "the worker")
        except AssertionError:
            self.kill()
            pytest.fail(f"The worker did not come up:\n{self.log.read_text()}")

    def _is_ready(self) -> bool:
        assert self._worker is not None
        assert self._worker.poll() is None, "The worker has ended."
        return self.ready in self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill the worker with all its children, as when its machine is switched off."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            for pid in session_of(self._worker.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._worker = None


def session_of(leader: int) -> list[int]:
    """Return the processes in the session that a process led; their groups may be others."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = path.read_text().rpartition(")")[2].split()[3]
        except OSError:
            continue  # ended meanwhile
        if int(session) == leader:
            found.append(int(path.parent.name))
    return found


def remove_keys(name: str) -> None:
    """Remove what is named after a harness from Redis."""
    with Redis.from_url(URLS["Redis"]) as connection:
        if keys := list(connection.scan_iter(match=f"*{name}*", count=1000)):
            connection.delete(*keys)


@pytest.mark.django_db(transaction=True)
class WithHarness:
    """The words that tests with an executor are written in.

    ``harness`` is online or offline at the start of a test: each says which it needs.
    """

    harness_class: ClassVar[type[Harness]]

    @pytest.fixture(scope="class")
    @classmethod
    def shared(
        cls, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Harness]:
        folder = tmp_path_factory.mktemp("traces")
        service = cls.harness_class.service
        if service is None:
            harness = cls.harness_class(folder, None)
            yield harness
            harness.kill()
            return
        with proxy(require_service(service)) as through:
            harness = cls.harness_class(folder, through)
            harness.set_up()
            yield harness
            harness.kill()
            through.up()
            harness.tear_down()
            if service == "Redis":
                remove_keys(harness.name)

    @pytest.fixture(autouse=True)
    def harness(self, shared: Harness, settings: Any, transactional_db: None) -> Iterator[Harness]:
        settings.RUN_CANCEL_BACKENDS = {
            ALIAS: {
                "BACKEND": shared.backend,
                "OPTIONS": {"TIMEOUT": TIMEOUT, **shared.options()},
            }
        }
        self.backend: BaseBackend = get_backend(ALIAS)
        self.shared = shared
        yield shared
        if shared._through is not None:
            shared._through.up()
        # A job that still runs would work on in a database that is emptied.
        traces = list(shared.folder.glob("*_*"))
        lines = [path.read_text().splitlines() for path in traces]
        if any(trace.count("started") > trace.count("left") for trace in lines):
            shared.kill()
        for path in traces:
            path.unlink()

    def send(self, title: str, count: int = 1) -> list[Any]:
        """Dispatch runs, as ``dispatch()`` does but at once."""
        runs = [make_run(title=title, backend=ALIAS, external_id="") for _ in range(count)]
        for run in runs:
            run.external_id = self.backend.new_external_id(run)
            run.save(update_fields=["external_id"])
            self.backend.dispatch(run)
        return runs

    def started(self, title: str) -> Any:
        """Dispatch a run to the online worker and return it once its body runs."""
        (run,) = self.send(title)
        wait_until(lambda: "started" in self.trace(run), "the body")
        return run

    def cancel(self, *runs: Any) -> None:
        result = services.cancel_runs([run.run_id for run in runs], requested_by="tests")
        assert result.cancelled == [run.run_id for run in runs]

    def stop(self, *runs: Any, running: bool = False, force: bool = False) -> list[Any]:
        """Tell the executor, and return what came of it in the order of the runs."""
        requests = [StopRequest(run.run_id, run.external_id, running) for run in runs]
        outcomes = self.backend.stop(requests, force=force)
        assert set(outcomes) == {run.external_id for run in runs}
        return [outcomes[run.external_id] for run in runs]

    def told(self, *runs: Any, running: bool = False, force: bool = False) -> list[Any]:
        """Tell the executor, and once more about a job that its worker has locked just then."""
        outcomes = self.stop(*runs, running=running, force=force)
        for index, run in enumerate(runs):
            deadline = time.monotonic() + 5
            while "has locked its" in str(outcomes[index]) and time.monotonic() < deadline:
                time.sleep(0.02)
                (outcomes[index],) = self.stop(run, running=running, force=force)
        assert all(isinstance(outcome, StopOutcome) for outcome in outcomes), outcomes
        return outcomes

    def trace(self, run: Any) -> list[str]:
        return traced(self.shared.folder, run.run_id)

    def wait_for(self, status: str, *runs: Any) -> None:
        wait_until(lambda: set(statuses(*runs)) == {status}, status)

    def drain(self) -> None:
        """Return when the worker has taken all that was queued before."""
        self.shared.online()
        self.wait_for(RunStatus.COMPLETED, *self.send("short"))

    def stop_state(self, run: Any) -> str:
        run.refresh_from_db()
        return str(run.stop_state)

    def deliver(self) -> None:
        """Do what the delivery worker does, without waiting between attempts."""
        CancellationItem.objects.filter(delivery=Delivery.PENDING).update(
            next_attempt_at=timezone.now()
        )
        deliver_due()

    def goes_on(self, run: Any) -> None:
        seen = len(self.trace(run))
        wait_until(lambda: len(self.trace(run)) > seen + 3, "what nobody can stop")
        assert "left" not in self.trace(run)


class PoolContract(WithHarness):
    """What depends on how a worker runs jobs."""

    def test_runs_what_is_dispatched_once(self, harness: Harness) -> None:
        harness.online()
        (run,) = self.send("short")
        self.wait_for(RunStatus.COMPLETED, run)
        self.backend.dispatch(run)
        self.drain()
        assert self.trace(run) == ["started", "left"]

    def test_cancelled_in_the_queue_of_a_busy_worker(self, harness: Harness) -> None:
        harness.online()
        busy = self.started("asks")
        queued = self.send("short", 3)
        self.cancel(*queued, busy)
        self.told(busy, running=True)
        self.told(*queued)
        self.drain()
        assert [self.trace(run) for run in queued] == [[]] * 3

    def test_running__stops_within_the_grace(self, harness: Harness) -> None:
        harness.online()
        run = self.started("asks")
        self.cancel(run)
        assert self.stop_state(run) == "stopping"
        self.told(run, running=True)
        wait_until(lambda: "left" in self.trace(run), "the end of the body", 5)
        wait_until(lambda: self.stop_state(run) == "acknowledged", "the acknowledgement", 5)
        assert run.status == RunStatus.CANCELLED

    def test_running__asked_without_checkpoints(self, harness: Harness) -> None:
        harness.online()
        run = self.started("deaf")
        self.cancel(run)
        (outcome,) = self.told(run, running=True)
        if self.backend.can_stop_running:
            wait_until(lambda: "left" in self.trace(run), "the end of the body", 5)
        else:
            assert outcome is StopOutcome.UNSUPPORTED
            self.goes_on(run)

    def test_running__force(self, harness: Harness) -> None:
        harness.online()
        run = self.started("stubborn")
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
        """The delivery worker asks, then kills, and the record says how the run ended."""
        settings.RUN_CANCEL_GRACE_SECONDS = 0.5
        harness.online()
        run = self.started("stubborn")
        self.cancel(run)
        self.deliver()
        assert self.stop_state(run) == StopState.STOPPING
        if not self.backend.can_force:
            self.goes_on(run)
            settings.RUN_CANCEL_PRESUME_SECONDS = 0.5
        wait_until(lambda: self.deliver() or self.stop_state(run) != "stopping", "the evidence")
        assert run.stop_state == (
            StopState.KILLED if self.backend.can_force else StopState.PRESUMED
        )

    def test_retry_never_resurrects(self, harness: Harness) -> None:
        """The executor's own retry, after a cancellation during the try and between two tries."""
        harness.online()
        during = self.started("fails_when_told")
        self.cancel(during)
        (harness.folder / f"{during.run_id}.go").touch()
        wait_until(lambda: "left" in self.trace(during), "the failure")
        (between,) = self.send("fails_first")
        wait_until(lambda: "left" in self.trace(between), "the failure")
        self.wait_for(RunStatus.QUEUED, between)
        self.cancel(between)
        # Sent last, it is tried again last.
        (control,) = self.send("fails_first")
        self.wait_for(RunStatus.COMPLETED, control)
        assert self.trace(control).count("started") == 2
        assert self.trace(during).count("started") == 1
        assert self.trace(between).count("started") == 1
        assert statuses(during, between) == ["cancelled", "cancelled"]

    def test_tries_are_used_up__the_run_has_failed(self, harness: Harness) -> None:
        """It does not wait for ever for a try that never comes."""
        harness.online()
        (run,) = self.send("fails_always")
        self.wait_for(RunStatus.FAILED, run)
        assert self.trace(run).count("started") == jobs.TRIES
        run.refresh_from_db()
        assert run.failure_reason == "tests.backends.jobs.Oops"

    def test_abilities_are_declared(self) -> None:
        for name in ("can_drop_queued", "can_stop_running", "can_force", "stops_many"):
            assert isinstance(getattr(self.backend, name), bool)
        assert [message.id for message in self.backend.check()] == self.shared.checks


class BackendContract(PoolContract):
    """The whole of what is asked of every backend."""

    def test_dispatched_twice_runs_once(self, harness: Harness) -> None:
        harness.kill()
        (run,) = self.send("short")
        self.backend.dispatch(run)
        self.drain()
        self.wait_for(RunStatus.COMPLETED, run)
        assert self.trace(run) == ["started", "left"]

    def test_cancelled_while_the_worker_is_offline(self, harness: Harness) -> None:
        harness.kill()
        told, untold, other = self.send("short", 3)
        self.cancel(told, untold)
        self.told(told)
        self.drain()
        self.wait_for(RunStatus.COMPLETED, other)
        assert self.trace(told) == self.trace(untold) == []
        assert statuses(told, untold) == ["cancelled", "cancelled"]

    def test_unknown_finished_and_repeated(self, harness: Harness) -> None:
        harness.online()
        (finished,) = self.send("short")
        self.wait_for(RunStatus.COMPLETED, finished)
        unknown = make_run(backend=ALIAS, external_id="")
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
        run = self.started("asks")
        self.cancel(run)
        request = StopRequest(run.run_id, run.external_id, True)
        assert len(self.backend.stop([request, request], force=False)) == 1
        self.told(run, running=True)
        wait_until(lambda: "left" in self.trace(run), "the end of the body", 5)
        self.told(run, running=True)

    def test_job_that_waits_although_its_run_was_running(self, harness: Harness) -> None:
        """That it is dropped says nothing about what is running."""
        harness.kill()
        (run,) = self.send("short")
        for _ in range(2):
            assert StopOutcome.STOPPED not in self.told(run, running=True)

    def test_a_hundred(self, harness: Harness) -> None:
        harness.kill()
        runs = self.send("short", 20)
        unknown = [make_run(backend=ALIAS, external_id=str(uuid.uuid4())) for _ in range(80)]
        self.cancel(*runs, *unknown)
        began = time.monotonic()
        self.told(*self.known_ids(runs, unknown))
        assert time.monotonic() - began < 2 * TIMEOUT + 1
        self.drain()
        assert [self.trace(run) for run in runs] == [[]] * 20

    def known_ids(self, runs: list[Any], unknown: list[Any]) -> list[Any]:
        """Return a hundred runs of which some were dispatched."""
        for run in unknown:
            run.external_id = self.backend.new_external_id(run)
        return [*runs, *unknown]

    @pytest.mark.parametrize("step", ["queued", "cancelled", "told"])
    def test_worker_is_killed__before_the_job_ran(self, harness: Harness, step: str) -> None:
        harness.online()
        busy = self.started("deaf")
        (run,) = self.send("short")
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
        assert statuses(run, busy) == ["cancelled", "cancelled"]

    @pytest.mark.parametrize("step", ["started", "cancelled", "told"])
    def test_worker_is_killed__while_the_job_ran(self, harness: Harness, step: str) -> None:
        harness.online()
        run = self.started("stubborn")
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
        assert statuses(run) == ["cancelled"]


class BrokerContract(BackendContract):
    """For executors whose jobs wait in a broker of their own, which can be away."""

    @pytest.mark.parametrize("how", ["refused", "silent"])
    def test_broker_is_down(self, harness: Harness, how: str) -> None:
        """One timeout, not one for each id, also on connections that were good before."""
        harness.kill()
        runs = self.send("short", 2)
        many = [*runs, *(make_run(external_id=str(uuid.uuid4())) for _ in range(98))]
        self.cancel(*runs)
        harness.proxy.down(how)
        for force, running in ((False, False), (True, True)):
            began = time.monotonic()
            outcomes = self.stop(*many, force=force, running=running)
            assert time.monotonic() - began < 2 * TIMEOUT + 1
            assert all(isinstance(outcome, Exception) for outcome in outcomes), outcomes
        began = time.monotonic()
        with pytest.raises(RunCancelError):
            self.send("short")
        assert time.monotonic() - began < 2 * TIMEOUT + 1
        (message, *_) = self.backend.check(deploy=True)
        assert message.id == "django_run_cancel.W005"
        harness.proxy.up()
        messages = self.backend.check(deploy=True)
        assert [message.id for message in messages] == harness.checks
        self.told(*runs)
        self.drain()
        assert [self.trace(run) for run in runs] == [[], []]

    def test_broker_is_down__then_delivered(self, harness: Harness) -> None:
        """What was cancelled meanwhile is delivered when the broker is back."""
        harness.kill()
        runs = self.send("short", 2)
        harness.proxy.down("refused")
        self.cancel(*runs)
        self.deliver()
        items = CancellationItem.objects.filter(run_id__in=[run.run_id for run in runs])
        assert {(item.delivery, bool(item.last_error)) for item in items} == {("pending", True)}
        harness.proxy.up()
        self.deliver()
        assert not [item.last_error for item in items.all() if item.last_error]
        if self.backend.keeps_requests:
            assert {item.delivery for item in items.all()} == {Delivery.DELIVERED}
        self.drain()
        assert [self.trace(run) for run in runs] == [[], []]
