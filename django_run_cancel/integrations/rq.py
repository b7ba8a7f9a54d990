"""RQ integration: makes each job a run, by one line for a project.

With django-rq: ``RQ = {"JOB_CLASS": "django_run_cancel.integrations.rq.CancellableJob"}``. With RQ
alone: ``Queue(job_class=CancellableJob)`` and ``rq worker --job-class`` with its dotted path.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC
from functools import partial
from typing import Any

from rq.exceptions import AbandonedJobError, InvalidJobOperation
from rq.job import Job, JobStatus, Retry

from django_run_cancel.backends.rq import DISPATCHED, WAITING
from django_run_cancel.db.event_loop import orm_is_refused
from django_run_cancel.exceptions import RunCancelled, RunInProgress, TransitionNotAllowed
from django_run_cancel.execution import Execution, current_run
from django_run_cancel.integrations.redelivery import aware, has_ended_before
from django_run_cancel.integrations.tracking import (
    TaskMessage,
    backend_alias,
    cancel_dropped,
    executing,
    fail_dropped,
    is_tracked,
    record_published,
)
from django_run_cancel.models import run_rows
from django_run_cancel.safe_text import printable
from django_run_cancel.states import RunStatus

BACKEND = "django_run_cancel.backends.rq.RQBackend"

DETACHED = "run_cancel_detached"
"""Key in the ``meta`` of jobs whose run continues when the run that published it is cancelled."""

PARENT = "run_cancel_parent"
"""Key in the ``meta`` of a job: id of the run that published it."""

PUBLISHED = {status for status in WAITING if status.value != "created"}  # not in RQ 2.0

RETURNED_RETRIES = hasattr(Job, "_handle_retry_result")
"""Whether this version of RQ retries a job that returns ``Retry``, as since 2.1."""

REFUSALS = (RunCancelled, RunInProgress, TransitionNotAllowed)

logger = logging.getLogger("django_run_cancel")


class CancellableJob(Job):
    """Job class that makes each job a run.

    Functions keep their signature, arguments, result, retries, timeouts, callbacks and schedule.
    """

    _is_new = False
    _run_has_ended = False  # in this process
    _runs_elsewhere = False
    _is_closed = False  # RQ must neither store a result nor call callbacks

    # Publishing a job

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> CancellableJob:
        """Create a job, and store the id of the current run in its ``meta``."""
        job: Any = super().create(*args, **kwargs)
        job._is_new = True
        running = current_run()
        if running is not None and _is_tracked(job) and not job.meta.get(DETACHED):
            job.meta = {**job.meta, PARENT: running.run_id}
        return job  # type: ignore[no-any-return]  # RQ's method is not typed

    def save(self, pipeline: Any = None, *args: Any, **kwargs: Any) -> None:
        """Save the job, and create its run when the pipeline has been executed."""
        is_new, is_published = self._is_new, self._is_published
        self._is_new = False  # for to_dict(), which save() calls
        try:
            super().save(pipeline, *args, **kwargs)
        finally:
            self._is_new = is_new
        if is_published and pipeline is not None:  # RQ always passes one to enqueue a job
            _record_when_executed(self, pipeline)

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Create the run of a job with ``unique=True``, which RQ writes without ``save()``."""
        if self._is_published:
            _record(self)
        return super().to_dict(*args, **kwargs)

    @property
    def _is_published(self) -> bool:
        """Whether RQ is writing a new job to enqueue it; False if the host has called ``save()``.

        The status does not tell, as jobs are created with the status ``queued``.
        """
        if not self._is_new or self._status not in PUBLISHED:
            return False
        return self._status != JobStatus.QUEUED or self.enqueued_at is not None

    # Executing a job, and its end

    def perform(self) -> Any:
        """Execute the run of the job."""
        if not _is_tracked(self):
            return super().perform()
        if orm_is_refused():  # enqueued in an event loop with is_async=False
            self._run_has_ended = True  # no run exists
            return super().perform()
        run: Execution | None = None
        result = refusal = None
        try:
            with executing(_message(self), requeue_on=self._is_tried_again) as run:
                result = super().perform()
                self._raise_if_executed_again(result)
        except (_ExecutedAgain, MaxRetriesExceeded):
            pass
        except Exception as error:
            # An error about another run is an ordinary error of the job.
            is_refused = isinstance(error, REFUSALS) and error.run_id == self.id
            if not is_refused and (run is None or not run.cancelled):
                raise
            refusal = error if is_refused else None
        finally:
            self._run_has_ended = run is not None
        if refusal is not None:
            return self._refuse(refusal, started=run is not None)
        return self._end_as_canceled() if run is not None and run.cancelled else result

    def _is_tried_again(self, error: BaseException) -> bool:
        if isinstance(error, (_ExecutedAgain, MaxRetriesExceeded)):
            return isinstance(error, _ExecutedAgain)
        return bool(self.retries_left) and not self._is_synchronous

    @property
    def _is_synchronous(self) -> bool:
        """Whether the queue has ``is_async=False``; then RQ neither retries nor repeats jobs."""
        return self.worker_name == "sync"

    def _raise_if_executed_again(self, result: Any) -> None:
        """Raise an error that leaves the run queued, if RQ will execute the returned job again.

        Raises:
            _ExecutedAgain: RQ will retry or repeat the job.
            MaxRetriesExceeded: RQ will fail the job, as there are no retries left.
        """
        if self._is_synchronous:
            return
        if isinstance(result, Retry) and RETURNED_RETRIES:
            if (self.number_of_retries or 0) >= result.max:
                raise MaxRetriesExceeded(f"The job has been tried again {result.max} times.")
            raise _ExecutedAgain
        if getattr(self, "repeats_left", None):  # since RQ 2.3
            raise _ExecutedAgain

    def _refuse(self, refused: Exception, *, started: bool) -> Any:
        if isinstance(refused, RunCancelled):
            return self._end_as_canceled()
        if isinstance(refused, TransitionNotAllowed):
            if not started and self._is_enqueued_again():
                return super().perform()
            completed = refused.current == RunStatus.COMPLETED
            super().set_status(JobStatus.FINISHED if completed else JobStatus.FAILED)
        else:
            self._runs_elsewhere = True
        self._close()
        return None

    def _is_enqueued_again(self) -> bool:
        """Tell whether the host has enqueued the job after the end of its run, as ``requeue`` does.

        Such a job is executed without a run. One that was enqueued before is a duplicate.
        """
        # In RQ 2.0 the time is naive.
        return self.enqueued_at is None or has_ended_before(self.id, aware(self.enqueued_at, UTC))

    def _end_as_canceled(self) -> None:
        """Give the job the state that it has after ``job.cancel()``."""
        self._run_has_ended = True
        with suppress(InvalidJobOperation):  # cancelled already
            super().cancel()
        if dependents := self.dependent_ids:
            _cancel_run(self, "The job that it depends on has been cancelled.", dependents)
        self._close()

    def _close(self) -> None:
        """Keep RQ from storing a success when ``perform()`` returns."""
        self._is_closed = True
        self.repeats_left = None
        self.webhooks = []

    @property
    def success_callback(self) -> Any:
        """The callback; None for a job that was cancelled, or is a duplicate."""
        return None if self._is_closed else super().success_callback

    @property
    def dependents_key(self) -> str:
        """The key; one without jobs if another execution will enqueue the dependents."""
        key: str = super().dependents_key
        return f"{key}:none" if self._runs_elsewhere else key

    def _handle_success(self, *args: Any, **kwargs: Any) -> None:
        if not self._is_closed:
            super()._handle_success(*args, **kwargs)

    def cleanup(self, *args: Any, **kwargs: Any) -> None:
        """Set the expiry of the job, except for a cancelled one, which ``cancel()`` keeps, too."""
        if not self._is_closed:
            super().cleanup(*args, **kwargs)

    # Status changes, cancellation and deletion through RQ

    def set_status(self, status: JobStatus, pipeline: Any = None) -> None:
        """End the run of a job that RQ has killed, or whose worker has died."""
        super().set_status(status, pipeline)
        if self._run_has_ended:
            return
        if status == JobStatus.STOPPED:
            _cancel_run(self, "The job has been stopped.")
        elif status == JobStatus.FAILED:
            _fail_run(self)

    def cancel(
        self, pipeline: Any = None, enqueue_dependents: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """Cancel the job, its run, and the runs of dependent jobs."""
        dependents = self.dependent_ids
        outcome = super().cancel(pipeline, enqueue_dependents, *args, **kwargs)
        if enqueue_dependents:
            _detach_dependents(self, dependents)
            dependents = []
        _cancel_run(self, "The job has been cancelled.", dependents)
        return outcome

    def delete(self, *args: Any, **kwargs: Any) -> None:
        """Delete the job, and cancel its run."""
        super().delete(*args, **kwargs)
        if not self._run_has_ended:
            _cancel_run(self, "The job has been deleted.")


class MaxRetriesExceeded(Exception):
    """The job has returned ``Retry`` more often than its ``max``."""


class _ExecutedAgain(Exception):
    """Raised to leave the run queued for the next try or repetition of the job."""


def _is_tracked(job: Job) -> bool:
    return not job.meta.get(DISPATCHED) and is_tracked(_name(job), job.id)


def _name(job: Job) -> str:
    """Return the dotted path of the job's function or method."""
    owner = job.instance
    if owner is None:
        return str(job.func_name)
    of_class = owner if isinstance(owner, type) else type(owner)
    return f"{of_class.__module__}.{of_class.__qualname__}.{job.func_name}"


def _message(job: Job) -> TaskMessage:
    # The first dependency is the parent, as the job cannot start without it.
    parent_id = next(iter(job._dependency_ids), "") or job.meta.get(PARENT, "")
    return TaskMessage(job.id, _name(job), job.args, job.kwargs, backend_alias(BACKEND), parent_id)


def _record_when_executed(job: CancellableJob, pipeline: Any) -> None:
    """Create the run of a job after its pipeline is executed; not if it fails or is discarded."""
    jobs: dict[str, CancellableJob] | None = vars(pipeline).get("run_cancel_jobs")
    if jobs is None:
        jobs = pipeline.run_cancel_jobs = {}
        pipeline.execute = partial(_execute_and_record, pipeline)
        pipeline.reset = partial(_discard, pipeline)
    jobs[job.id] = job


def _execute_and_record(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
    jobs = pipeline.run_cancel_jobs
    _restore(pipeline)
    results = pipeline.execute(*args, **kwargs)
    for job in jobs.values():
        _record(job)
    return results


def _discard(pipeline: Any) -> None:
    _restore(pipeline)
    pipeline.reset()


def _restore(pipeline: Any) -> None:
    del pipeline.run_cancel_jobs, pipeline.execute, pipeline.reset


def _record(job: CancellableJob) -> None:
    job._is_new = False
    try:
        if _is_tracked(job):
            record_published(_message(job))
    except Exception:
        logger.exception(
            "No run was created for the job %s; that is done when it starts.", printable(job.id)
        )


def _cancel_run(job: Job, reason: str, dependents: list[str] | tuple[str, ...] = ()) -> None:
    try:
        if _is_tracked(job):
            cancel_dropped(job.id, *dependents, requested_by="rq", reason=reason)
    except Exception:
        logger.exception("The run of the job %s was not cancelled.", printable(job.id))


def _fail_run(job: Job) -> None:
    try:
        if _is_tracked(job):
            fail_dropped(job.id, error=AbandonedJobError("The process of the job is gone."))
    except Exception:
        logger.exception("The run of the job %s was not ended.", printable(job.id))


def _detach_dependents(job: Job, dependents: list[str]) -> None:
    """Detach the runs of dependent jobs, if ``cancel(enqueue_dependents=True)`` keeps the jobs."""
    try:
        if _is_tracked(job) and dependents:
            run_rows(run_id__in=dependents, parent__run_id=job.id).update(parent=None)
    except Exception:
        logger.exception("Dependents of the job %s are cancelled with it.", printable(job.id))
