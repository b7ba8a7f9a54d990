"""Procrastinate: its queue is a table in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from django.core.checks import CheckMessage
from django.utils.functional import cached_property
from django.utils.module_loading import import_string
from procrastinate.exceptions import AlreadyEnqueued, JobAborted
from procrastinate.tasks import Task

from django_run_cancel.backends.base import BackendError, BaseBackend, StopOutcome, StopRequest
from django_run_cancel.backends.bounded import call_database
from django_run_cancel.exceptions import RunCancelError
from django_run_cancel.models import AbstractRun

Result = TypeVar("Result")

# What procrastinate_cancel_job_v1() does to one job, for many of them, and with an answer.
STOP = """
UPDATE procrastinate_jobs
SET abort_requested = true,
    status = CASE status WHEN 'todo' THEN 'cancelled'::procrastinate_job_status ELSE status END
WHERE id IN (
    SELECT id FROM procrastinate_jobs
    WHERE status IN ('todo', 'doing') AND queueing_lock = ANY(%(external_ids)s)
    FOR UPDATE SKIP LOCKED
)
RETURNING id, queueing_lock, status::text
"""

LOCKED = """
SELECT queueing_lock FROM procrastinate_jobs
WHERE status IN ('todo', 'doing') AND queueing_lock = ANY(%(external_ids)s)
    AND NOT id = ANY(%(ids)s)
"""


@contextmanager
def abort_refused() -> Iterator[None]:
    """Let a job whose run is cancelled, or may not start, end as ``aborted``.

    Procrastinate then neither logs an error nor tries again, whatever ``retry`` says. Around an
    ``execution``, in functions and in coroutines alike.

    Raises:
        JobAborted: Instead of any ``RunCancelError``.
    """
    try:
        yield
    except RunCancelError as refused:
        raise JobAborted(str(refused)) from refused


class ProcrastinateBackend(BaseBackend):
    """Defers a task for each run, and cancels or aborts its job.

    The external id is the queueing lock of the job: unlike its id, it can be chosen.

    Options:
        TASK: Dotted path of the task; its only argument is ``run_id``.
    """

    can_drop_queued = True
    stops_many = True
    required_options = frozenset({"TASK"})

    @cached_property
    def task(self) -> Task[Any, Any, Any]:
        """The task, which knows its app."""
        task: Task[Any, Any, Any] = import_string(self.options["TASK"])
        return task

    @property
    def can_stop_running(self) -> bool:  # type: ignore[override]
        """Whether the task is a coroutine: a function can only ask."""
        return iscoroutinefunction(self.task.func)

    @property
    def _connector(self) -> Any:
        app: Any = self.task.blueprint
        return app.connector.get_sync_connector()

    def _call(self, function: Callable[[], Result]) -> Result:
        using = getattr(self._connector, "alias", None)
        return call_database(function, using, self.alias, self.timeout)

    def dispatch(self, run: AbstractRun) -> None:
        """Defer the job, unless it waits already."""
        deferrer = self.task.configure(queueing_lock=run.external_id)
        try:
            self._call(lambda: deferrer.defer(run_id=run.run_id))
        except AlreadyEnqueued:
            pass
        except Exception as error:
            raise BackendError(f"Procrastinate: {error}") from error

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Cancel what waits and abort what runs, in one statement.

        A coroutine gets ``CancelledError``; a function has to ask, as ``checkpoint()`` does.
        """
        external_ids = [request.external_id for request in requests]
        try:
            rows, locked = self._call(lambda: self._stop(external_ids))
        except Exception as error:  # noqa: BLE001 - of a database that is another's
            return dict.fromkeys(external_ids, error)
        # What is not found is finished, unknown or on its way, and then its start is refused.
        outcomes: dict[str, StopOutcome | Exception]
        outcomes = dict.fromkeys(external_ids, StopOutcome.TOLD)
        running = StopOutcome.TOLD if self.can_stop_running else StopOutcome.UNSUPPORTED
        # Of a run that was running, a job that waits is another try, after a worker seemed dead.
        waited = {request.external_id for request in requests if not request.running}
        outcomes |= dict.fromkeys(
            waited.intersection(row["queueing_lock"] for row in rows), StopOutcome.STOPPED
        )
        # A run that was dispatched twice has stopped when neither job is running.
        outcomes |= {row["queueing_lock"]: running for row in rows if row["status"] == "doing"}
        return outcomes | dict.fromkeys(locked, BackendError("Somebody has locked its job."))

    def _stop(self, external_ids: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the jobs that were told, and the ids of those that somebody has locked."""
        query = self._connector.execute_query_all
        rows = query(STOP, external_ids=external_ids)
        locked = query(LOCKED, external_ids=external_ids, ids=[row["id"] for row in rows])
        return rows, [row["queueing_lock"] for row in locked]

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check that there is such a task, by importing it, and what the base checks."""
        self.task  # noqa: B018
        return super().check(**kwargs)

    def ping(self) -> None:
        """Look for the table of the jobs."""
        self._call(lambda: self._connector.execute_query("SELECT FROM procrastinate_jobs LIMIT 0"))
