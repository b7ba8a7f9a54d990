"""``ExecutorCase``: helper methods for tests with a real executor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest
from django.db import connections
from django.utils import timezone

from django_run_cancel.backends import BaseBackend, StopOutcome, StopRequest, get_backend
from django_run_cancel.cancellation import cancel_runs
from django_run_cancel.delivery import deliver_due
from django_run_cancel.models import CancellationItem, get_run_model, run_rows
from django_run_cancel.states import Delivery, RunStatus
from django_run_cancel.testing.conformance.harness import Harness
from django_run_cancel.testing.conformance.proxy import Proxy
from django_run_cancel.testing.helpers import wait_until
from django_run_cancel.testing.jobs import read_trace

ALIAS = "tested"
"""Alias of the backend under test."""


@pytest.mark.django_db(transaction=True)
class ExecutorCase:
    """Base class of tests with the executor of a harness, which the tests of a class share.

    The worker may be running or not at the start of a test. Each test calls ``harness.online()`` or
    ``harness.kill()`` itself.
    """

    harness_class: ClassVar[type[Harness]]

    @pytest.fixture(scope="class")
    @classmethod
    def _executor(
        cls, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Harness]:
        broker_url = cls.harness_class.broker()
        with ExitStack() as stack:
            proxy = stack.enter_context(Proxy(broker_url)) if broker_url else None
            harness = cls.harness_class(tmp_path_factory.mktemp("traces"), broker_url, proxy)
            harness.set_up()
            yield harness
            harness.kill()
            if proxy is not None:
                proxy.up()
            harness.tear_down()

    @pytest.fixture(autouse=True)
    def harness(
        self, _executor: Harness, settings: Any, transactional_db: None
    ) -> Iterator[Harness]:
        """Configure the backend under test, and return the harness."""
        options = {"TIMEOUT": _executor.timeout, **_executor.options()}
        settings.RUN_CANCEL_BACKENDS = {ALIAS: {"BACKEND": _executor.backend, "OPTIONS": options}}
        self.backend: BaseBackend = get_backend(ALIAS)
        self.executor = _executor
        yield _executor
        if _executor._proxy is not None:
            _executor._proxy.up()
        # A job that is still running would use the database while it is flushed.
        traces = list(_executor.folder.glob("*_*"))
        lines = [path.read_text().splitlines() for path in traces]
        is_working = any(trace.count("started") > trace.count("left") for trace in lines)
        # A worker with a queue in the database writes there what has become of its last job, and
        # ends if that is gone. On MySQL, flushing a table breaks the transactions of any.
        is_mysql = connections[run_rows().db].vendor == "mysql"
        is_writing = _executor.broker() is None and (bool(traces) or is_mysql)
        if is_working or is_writing:
            _executor.kill()
        for path in traces:
            path.unlink()

    def make_run(self, title: str = "", external_id: str = "") -> Any:
        """Create a queued run whose title is the name of a job in ``testing.jobs``."""
        return get_run_model()._default_manager.create(
            status=RunStatus.QUEUED, title=title, backend=ALIAS, external_id=external_id
        )

    def send(self, title: str, count: int = 1) -> list[Any]:
        """Create runs and dispatch them by the backend, without ``dispatch()`` of the package."""
        runs = [self.make_run(title) for _ in range(count)]
        for run in runs:
            run.external_id = self.backend.new_external_id(run)
            run.save(update_fields=["external_id"])
            self.backend.dispatch(run)
        return runs

    def started(self, title: str) -> Any:
        """Dispatch a run to the running worker, and wait until its job has started."""
        (run,) = self.send(title)
        wait_until(lambda: "started" in self.trace(run), "the job to start")
        return run

    def cancel(self, *runs: Any) -> None:
        """Cancel runs, without a stop request to the executor."""
        result = cancel_runs([run.run_id for run in runs], requested_by="tests")
        assert result.cancelled == [run.run_id for run in runs]

    def stop(self, *runs: Any, running: bool = False, force: bool = False) -> list[Any]:
        """Send stop requests, and return the outcomes in the order of the runs."""
        requests = [StopRequest(run.run_id, run.external_id, running) for run in runs]
        outcomes = self.backend.stop(requests, force=force)
        assert set(outcomes) == {run.external_id for run in runs}
        return [outcomes[run.external_id] for run in runs]

    def told(self, *runs: Any, running: bool = False, force: bool = False) -> list[StopOutcome]:
        """Send stop requests until none fails, and return the outcomes in the order of the runs."""
        outcomes: dict[str, StopOutcome] = {}

        def are_told() -> bool:
            remaining = [run for run in runs if run.external_id not in outcomes]
            answers = zip(
                remaining, self.stop(*remaining, running=running, force=force), strict=True
            )
            outcomes.update(
                {run.external_id: answer for run, answer in answers if not _is_error(answer)}
            )
            return len(outcomes) == len(runs)

        wait_until(are_told, "the executor to take note")
        return [outcomes[run.external_id] for run in runs]

    def trace(self, run: Any) -> list[str]:
        """Return the lines of the trace of a run's job."""
        return read_trace(self.executor.folder, run.run_id)

    def statuses(self, *runs: Any) -> list[str]:
        """Return the statuses in the database, in the order of the runs."""
        statuses = dict(get_run_model()._base_manager.values_list("run_id", "status"))
        return [statuses[run.run_id] for run in runs]

    def wait_for(self, status: str, *runs: Any) -> None:
        """Wait until all runs have this status."""
        wait_until(lambda: set(self.statuses(*runs)) == {status}, f"the status {status}")

    def drain(self) -> None:
        """Wait until the worker has processed all jobs that are in the queue now."""
        self.executor.online()
        self.wait_for(RunStatus.COMPLETED, *self.send("returns"))

    def stop_state(self, run: Any) -> str:
        """Return the current stop state of a run."""
        run.refresh_from_db()
        return str(run.stop_state)

    def wait_for_stop_state(self, state: str, run: Any) -> None:
        """Wait until a run has this stop state."""
        wait_until(lambda: self.stop_state(run) == state, f"the stop state {state}")

    def wait_for_end(self, run: Any) -> None:
        """Wait until the job of a run has ended."""
        wait_until(lambda: "left" in self.trace(run), "the end of the job")

    def goes_on(self, run: Any) -> None:
        """Wait until the job of a run has run for a while longer, and assert that it goes on."""
        count = len(self.trace(run))
        wait_until(lambda: len(self.trace(run)) > count + 3, "the job to go on")
        assert "left" not in self.trace(run)

    def deliver(self) -> None:
        """Do one step of the delivery worker, with all pending items due."""
        CancellationItem.objects.filter(delivery=Delivery.PENDING).update(
            next_attempt_at=timezone.now()
        )
        deliver_due()


def _is_error(answer: Any) -> bool:
    return isinstance(answer, Exception)
