"""Django Tasks, in the database of django-tasks-db: waiting tasks are marked as failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any
from uuid import UUID, uuid4

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning
from django.db import connections, router, transaction
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.module_loading import import_string
from django_tasks_db.backend import DatabaseBackend
from django_tasks_db.compat import BaseTaskBackend, Task, TaskResultStatus

from django_run_cancel.backends.base import (
    BackendError,
    BaseBackend,
    StopOutcome,
    StopRequest,
    TaskCall,
)
from django_run_cancel.backends.bounded import call_database
from django_run_cancel.exceptions import RunCancelled, UnknownTask
from django_run_cancel.models import AbstractRun

REASON = f"{RunCancelled.__module__}.{RunCancelled.__qualname__}"

WITHOUT_QUEUE = tuple(
    import_string(f"{BaseTaskBackend.__module__.removesuffix('.base')}.{name}")
    for name in ("dummy.DummyBackend", "immediate.ImmediateBackend")
)
"""Backends of Django Tasks for development and tests: nothing waits in them to be stopped."""

DISPATCHED = "72756e63-"
"""How the id of a task begins that ``dispatch()`` has sent: its function gets the run id."""


class DjangoTasksBackend(BaseBackend):
    """Enqueues a task for each run, and takes what still waits out of the queue.

    The id of the task result is the external id. Its worker has no way to stop running code.

    Options:
        TASK: Dotted path of the task of runs that are dispatched without one.
    """

    task_option = "TASK"
    dispatch_options = frozenset({"priority", "queue_name"})

    def new_external_id(self, run: AbstractRun) -> str:
        """Return the id of the task of a run, which is a UUID."""
        return f"{DISPATCHED}{str(uuid4())[len(DISPATCHED) :]}"

    def get_task(self, name: str) -> Task[Any, Any]:
        """Return the task with this dotted path; it knows its own backend."""
        task = super().get_task(name)
        if not isinstance(task, Task):
            raise UnknownTask(self.alias, name)
        return task

    def check_call(self, call: TaskCall) -> None:
        """Check the call, and the options as Django Tasks does."""
        super().check_call(call)
        self._task(call)

    def _task(self, call: TaskCall) -> Task[Any, Any]:
        task = self.get_task(call.task or self.options["TASK"])
        return task.using(**call.options) if call.options else task

    @cached_property
    def _results(self) -> Any:
        model = apps.get_model("django_tasks_database", "DBTaskResult")
        return model._default_manager.using(router.db_for_write(model)).order_by("pk")

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check that the task is kept in a database, or in development runs at once."""
        messages = super().check(**kwargs)
        if "TASK" not in self.options or any(found.is_serious() for found in messages):
            return messages
        backend = self.get_task(self.options["TASK"]).get_backend()
        if isinstance(backend, DatabaseBackend):
            return messages
        if isinstance(backend, WITHOUT_QUEUE):
            return [*messages, *self._check_deployed_without_queue(**kwargs)]
        return [
            Error(
                f"{self.options['TASK']} is no task of the DatabaseBackend of django-tasks-db.",
                hint="With django-tasks-rq or django-tasks-celery, use the backend for RQ or "
                "Celery: the ids are theirs.",
                id="django_run_cancel.E011",
            )
        ]

    def _check_deployed_without_queue(self, **kwargs: Any) -> list[CheckMessage]:
        if not kwargs.get("deploy"):
            return []
        return [
            Warning(
                f"Tasks of the backend {self.alias!r} have no queue: they run in the process that "
                "dispatches them, or never.",
                hint="For a deployment, use the DatabaseBackend of django-tasks-db in TASKS.",
                id="django_run_cancel.W011",
            )
        ]

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008
        """Enqueue the task, unless it has been."""
        external_id = UUID(run.external_id)
        task = self._task(call)
        args, kwargs = [run.run_id, *call.args], dict(call.kwargs)
        known = task.get_backend()
        if not isinstance(known, DatabaseBackend):
            known.enqueue(_untracked(task), args, kwargs)  # development: the task runs at once
            return
        options = {**known.options, "id_function": lambda: external_id}
        backend = type(known)(known.alias, {"QUEUES": list(known.queues), "OPTIONS": options})

        def enqueue() -> None:
            if not self._results.filter(pk=external_id).exists():
                backend.enqueue(task, args, kwargs)

        try:
            call_database(enqueue, self._results.db, self.alias, self.timeout)
        except Exception as error:
            raise BackendError(f"Django Tasks: {error}") from error

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Mark what waits as failed, in one transaction; what runs can only ask."""
        outcomes: dict[str, StopOutcome | Exception] = {}
        asked: dict[UUID, StopRequest] = {}
        for request in requests:
            # Not found it is unknown or on its way, and then its start is refused.
            outcomes[request.external_id] = StopOutcome.TOLD
            with suppress(ValueError):
                asked[UUID(request.external_id)] = request
        if not apps.is_installed("django_tasks_db"):
            return dict.fromkeys(outcomes, StopOutcome.UNSUPPORTED)
        try:
            found = call_database(
                lambda: self._drop(asked), self._results.db, self.alias, self.timeout
            )
        except Exception as error:  # noqa: BLE001 - of a database that is another's
            return dict.fromkeys(outcomes, error)
        for pk, status in found.items():
            outcome: StopOutcome | Exception
            if status is None:
                outcome = BackendError("Somebody has locked its task.")
            elif status == TaskResultStatus.RUNNING:
                outcome = StopOutcome.UNSUPPORTED
            elif status == TaskResultStatus.READY and asked[pk].running:
                outcome = StopOutcome.TOLD  # something else is running it
            else:
                outcome = StopOutcome.STOPPED
            outcomes[asked[pk].external_id] = outcome
        return outcomes

    def ping(self) -> None:
        """Look for the table of the task results."""
        call_database(self._results.exists, self._results.db, self.alias, self.timeout)

    def _drop(self, asked: Mapping[UUID, StopRequest]) -> dict[UUID, str | None]:
        """Return the statuses that the known ones of these had; None if somebody has it locked.

        What was dropped before still counts as waiting.
        """
        using = self._results.db
        skip_locked = connections[using].features.has_select_for_update_skip_locked
        with transaction.atomic(using=using):
            rows = self._results.filter(pk__in=asked)
            found: dict[UUID, str | None] = dict.fromkeys(rows.values_list("pk", flat=True))
            rows = rows.select_for_update(skip_locked=skip_locked)
            waiting = []
            for pk, status, reason in rows.values_list("pk", "status", "exception_class_path"):
                found[pk] = TaskResultStatus.READY if reason == REASON else status
                if status == TaskResultStatus.READY:
                    waiting.append(pk)
            self._results.filter(pk__in=waiting).update(
                status=TaskResultStatus.FAILED,
                finished_at=timezone.now(),
                exception_class_path=REASON,
                traceback="",
            )
        return found


def _untracked(task: Task[Any, Any]) -> Task[Any, Any]:
    """Return a task without what the integration has added, which makes each task a run."""
    if not hasattr(task, "run_cancel_detached"):
        return task
    return Task(**{field.name: getattr(task, field.name) for field in fields(Task)})
