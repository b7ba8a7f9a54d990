"""Backend for Django Tasks with django-tasks-db: sets waiting tasks to failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
"""Backends of Django Tasks for development and tests, which have no queue."""

DISPATCHED = "72756e63-"
"""Prefix of the ids of tasks that ``dispatch()`` sends, whose first argument is the run id."""


class DjangoTasksBackend(BaseBackend):
    """Enqueues a task for each run, and removes waiting tasks from the queue.

    The external id is the id of the task result. The worker cannot stop running code.

    Options:
        TASK: Dotted path of the default task.
    """

    task_option = "TASK"
    dispatch_options = frozenset({"priority", "queue_name"})

    def new_external_id(self, run: AbstractRun) -> str:
        """Return an id for the task of a run, a UUID."""
        return f"{DISPATCHED}{str(uuid4())[len(DISPATCHED) :]}"

    def get_task(self, name: str) -> Task[Any, Any]:
        """Return the task with this dotted path."""
        task = super().get_task(name)
        if not isinstance(task, Task):
            raise UnknownTask(self.alias, name)
        return task

    def check_call(self, call: TaskCall) -> None:
        """Validate the call, and the options by ``Task.using()``."""
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
        """Check that the task uses the DatabaseBackend or, in development, has no queue."""
        messages = super().check(**kwargs)
        if "TASK" not in self.options or any(message.is_serious() for message in messages):
            return messages
        backend = self.get_task(self.options["TASK"]).get_backend()
        if isinstance(backend, DatabaseBackend):
            return messages
        if isinstance(backend, WITHOUT_QUEUE):
            return [*messages, *self._check_deployed_without_queue(**kwargs)]
        return [
            Error(
                f"{self.options['TASK']} is not a task of the DatabaseBackend of django-tasks-db.",
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

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Enqueue the task, unless it is enqueued already."""
        external_id = UUID(run.external_id)
        task = self._task(call)
        args, kwargs = [run.run_id, *call.args], dict(call.kwargs)
        original = task.get_backend()
        if not isinstance(original, DatabaseBackend):
            original.enqueue(_untracked(task), args, kwargs)  # development: the task runs at once
            return
        options = {**original.options, "id_function": lambda: external_id}
        backend = type(original)(
            original.alias, {"QUEUES": list(original.queues), "OPTIONS": options}
        )

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
        """Set waiting tasks to failed, in one transaction; running tasks cannot be stopped."""
        outcomes: dict[str, StopOutcome | Exception] = {}
        requests_by_id: dict[UUID, StopRequest] = {}
        for request in requests:
            # A task that is not found is unknown or not committed yet; execution() refuses it.
            outcomes[request.external_id] = StopOutcome.TOLD
            with suppress(ValueError):
                requests_by_id[UUID(request.external_id)] = request
        if not apps.is_installed("django_tasks_db"):
            return dict.fromkeys(outcomes, StopOutcome.UNSUPPORTED)
        try:
            statuses = call_database(
                lambda: self._drop(requests_by_id), self._results.db, self.alias, self.timeout
            )
        except Exception as error:  # noqa: BLE001 - of any database
            return dict.fromkeys(outcomes, error)
        for pk, status in statuses.items():
            outcome: StopOutcome | Exception
            if status is None:
                outcome = BackendError("The row of its task is locked.")
            elif status == TaskResultStatus.RUNNING:
                outcome = StopOutcome.UNSUPPORTED
            elif status == TaskResultStatus.READY and requests_by_id[pk].running:
                outcome = StopOutcome.TOLD  # the code that is running belongs to another task
            else:
                outcome = StopOutcome.STOPPED
            outcomes[requests_by_id[pk].external_id] = outcome
        return outcomes

    def ping(self) -> None:
        """Query the table of task results."""
        call_database(self._results.exists, self._results.db, self.alias, self.timeout)

    def _drop(self, ids: Collection[UUID]) -> dict[UUID, str | None]:
        """Set waiting tasks to failed, and return the previous statuses by id.

        None stands for a locked task; unknown ids are missing. A task that an earlier request has
        removed from the queue still counts as waiting.
        """
        using = self._results.db
        skip_locked = connections[using].features.has_select_for_update_skip_locked
        with transaction.atomic(using=using):
            rows = self._results.filter(pk__in=ids)
            statuses: dict[UUID, str | None] = dict.fromkeys(rows.values_list("pk", flat=True))
            rows = rows.select_for_update(skip_locked=skip_locked)
            waiting = []
            for pk, status, reason in rows.values_list("pk", "status", "exception_class_path"):
                statuses[pk] = TaskResultStatus.READY if reason == REASON else status
                if status == TaskResultStatus.READY:
                    waiting.append(pk)
            self._results.filter(pk__in=waiting).update(
                status=TaskResultStatus.FAILED,
                finished_at=timezone.now(),
                exception_class_path=REASON,
                traceback="",
            )
        return statuses


def _untracked(task: Task[Any, Any]) -> Task[Any, Any]:
    """Return a plain Task, for which the integration does not create a run."""
    if not hasattr(task, "run_cancel_detached"):
        return task
    return Task(**{field.name: getattr(task, field.name) for field in fields(Task)})
