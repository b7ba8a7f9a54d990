"""Procrastinate backend: cancels waiting jobs and aborts running ones, by SQL on their table."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from django.utils.functional import cached_property
from django.utils.module_loading import import_string
from procrastinate.exceptions import AlreadyEnqueued
from procrastinate.jobs import JobDeferrer
from procrastinate.tasks import Task

from django_run_cancel.backends.base import (
    BackendError,
    BaseBackend,
    StopOutcome,
    StopRequest,
    TaskCall,
)
from django_run_cancel.backends.bounded import call_database
from django_run_cancel.exceptions import UnknownTask
from django_run_cancel.models import AbstractRun

Result = TypeVar("Result")

DISPATCHED = "run_cancel-"
"""Prefix of the queueing locks (external ids) of jobs that ``dispatch()`` defers."""

TRACKED = "procrastinate-"
"""Prefix of the external ids of jobs that the integration tracks; the job's id follows."""

# Like procrastinate_cancel_job_v1(), but for many jobs, and with RETURNING.
STOP = """
UPDATE procrastinate_jobs
SET abort_requested = true,
    status = CASE status WHEN 'todo' THEN 'cancelled'::procrastinate_job_status ELSE status END
WHERE id IN (
    SELECT id FROM procrastinate_jobs
    WHERE status IN ('todo', 'doing')
        AND (queueing_lock = ANY(%(external_ids)s) OR id = ANY(%(job_ids)s))
    FOR UPDATE SKIP LOCKED
)
RETURNING id, queueing_lock, status::text, task_name
"""

LOCKED = """
SELECT id, queueing_lock FROM procrastinate_jobs
WHERE status IN ('todo', 'doing')
    AND (queueing_lock = ANY(%(external_ids)s) OR id = ANY(%(job_ids)s))
    AND NOT id = ANY(%(ids)s)
"""


class ProcrastinateBackend(BaseBackend):
    """Defers a job for each run, and cancels or aborts jobs.

    The external id is the queueing lock of the job, as Procrastinate chooses the job's id itself.
    For a job that the integration tracks, it is ``procrastinate-`` and the id of the job.

    Options:
        TASK: Dotted path of the default task.
        APP: Dotted path of the app; by default that of ``TASK``, or of Procrastinate's Django app.
    """

    optional_options = frozenset({"APP"})
    task_option = "TASK"
    dispatch_options = frozenset({"lock", "priority", "queue", "schedule_in"})

    @cached_property
    def app(self) -> Any:
        """The Procrastinate app."""
        if "TASK" in self.options and "APP" not in self.options:
            return self.get_task(self.options["TASK"]).blueprint
        return import_string(self.options.get("APP", "procrastinate.contrib.django.app"))

    @property
    def can_stop_running(self) -> bool:  # type: ignore[override]  # a property here
        """Whether the task may be a coroutine, which can be aborted, unlike a function."""
        if "TASK" not in self.options:
            return True
        return iscoroutinefunction(self.get_task(self.options["TASK"]).func)

    def new_external_id(self, run: AbstractRun) -> str:
        """Return a queueing lock for the job of a run."""
        return f"{DISPATCHED}{uuid.uuid4()}"

    def get_task(self, name: str) -> Task[Any, Any, Any]:
        """Return the task with this dotted path."""
        task = super().get_task(name)
        if not isinstance(task, Task):
            raise UnknownTask(self.alias, name)
        return task

    def check_call(self, call: TaskCall) -> None:
        """Validate the call; Procrastinate supports keyword arguments only."""
        super().check_call(call)
        if call.args or "run_id" in call.kwargs:
            raise TypeError("Procrastinate takes keyword arguments only, and run_id is reserved.")
        self._deferrer(call)

    def _deferrer(self, call: TaskCall, external_id: str | None = None) -> JobDeferrer:
        task = self.get_task(call.task or self.options["TASK"])
        options: dict[str, Any] = {**call.options, "queueing_lock": external_id}
        return task.configure(**options)

    @property
    def _connector(self) -> Any:
        return self.app.connector.get_sync_connector()

    def _call(self, function: Callable[[], Result]) -> Result:
        using = getattr(self._connector, "alias", None)
        return call_database(function, using, self.alias, self.timeout)

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Defer the job, unless one is waiting already."""
        deferrer = self._deferrer(call, run.external_id)
        try:
            self._call(lambda: deferrer.defer(**call.kwargs, run_id=run.run_id))
        except AlreadyEnqueued:
            pass
        except Exception as error:
            raise BackendError(f"Procrastinate: {error}") from error

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Cancel waiting jobs and abort running ones, in one statement.

        Aborting raises ``CancelledError`` in a coroutine. A function ends at its checkpoints.
        """
        external_ids = [request.external_id for request in requests]
        try:
            rows, locked = self._call(lambda: self._stop(external_ids))
        except Exception as error:  # noqa: BLE001 - of any database
            return dict.fromkeys(external_ids, error)
        # A job that is not found is finished, unknown, or uncommitted; execution() refuses it.
        outcomes: dict[str, StopOutcome | Exception]
        outcomes = dict.fromkeys(external_ids, StopOutcome.TOLD)
        # If the run was running, a waiting job is a retry, and proves nothing about the first job.
        waited = {request.external_id for request in requests if not request.running}
        outcomes |= dict.fromkeys(
            waited.intersection(row["external_id"] for row in rows), StopOutcome.STOPPED
        )
        # A run that was dispatched twice has stopped only if neither of its jobs is running.
        outcomes |= {
            row["external_id"]: self._outcome_of_running(row["task_name"])
            for row in rows
            if row["status"] == "doing"
        }
        return outcomes | dict.fromkeys(locked, BackendError("The row of its job is locked."))

    def ping(self) -> None:
        """Query the table of jobs."""
        self._call(lambda: self._connector.execute_query("SELECT FROM procrastinate_jobs LIMIT 0"))

    def _outcome_of_running(self, name: str) -> StopOutcome:
        task = self.app.tasks.get(name)
        is_coroutine = task is not None and iscoroutinefunction(task.func)
        return StopOutcome.TOLD if is_coroutine else StopOutcome.UNSUPPORTED

    def _stop(self, external_ids: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the rows of updated jobs, and the external ids of jobs whose row is locked."""
        query = self._connector.execute_query_all
        numbers = [each.removeprefix(TRACKED) for each in external_ids if each.startswith(TRACKED)]
        parameters = {
            "external_ids": external_ids,
            "job_ids": [int(number) for number in numbers if number.isdecimal()],
        }
        rows = query(STOP, **parameters)
        locked = query(LOCKED, **parameters, ids=[row["id"] for row in rows])
        for row in (*rows, *locked):
            tracked = f"{TRACKED}{row['id']}"
            row["external_id"] = tracked if tracked in external_ids else row["queueing_lock"]
        return rows, [row["external_id"] for row in locked]
