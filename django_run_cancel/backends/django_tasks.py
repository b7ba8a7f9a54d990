"""Django Tasks, with the database backend of django-tasks-db."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.db import connections, router, transaction
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.module_loading import import_string
from django_tasks_db.backend import DatabaseBackend
from django_tasks_db.compat import Task, TaskResultStatus

from django_run_cancel.backends.base import BackendError, BaseBackend, StopOutcome, StopRequest
from django_run_cancel.backends.bounded import call_database
from django_run_cancel.exceptions import RunCancelled
from django_run_cancel.models import AbstractRun

REASON = f"{RunCancelled.__module__}.{RunCancelled.__qualname__}"


class DjangoTasksBackend(BaseBackend):
    """Enqueues a task for each run, and takes what still waits out of the queue.

    The id of the task result is the external id. Its worker has no way to stop running code.

    Options:
        TASK: Dotted path of the task; its only argument is the run id.
    """

    can_drop_queued = True
    stops_many = True
    required_options = frozenset({"TASK"})

    @cached_property
    def task(self) -> Task[Any, Any]:
        """The task, which knows its own backend."""
        task: Task[Any, Any] = import_string(self.options["TASK"])
        return task

    @cached_property
    def _results(self) -> Any:
        model = apps.get_model("django_tasks_database", "DBTaskResult")
        return model._default_manager.using(router.db_for_write(model)).order_by("pk")

    def dispatch(self, run: AbstractRun) -> None:
        """Enqueue the task, unless it has been."""
        external_id = UUID(run.external_id)
        known = self.task.get_backend()
        options = {**known.options, "id_function": lambda: external_id}
        backend = type(known)(known.alias, {"QUEUES": list(known.queues), "OPTIONS": options})

        def enqueue() -> None:
            if not self._results.filter(pk=external_id).exists():
                backend.enqueue(self.task, [run.run_id], {})

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

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check that the task is kept in a database."""
        if not isinstance(self.task.get_backend(), DatabaseBackend):
            return [
                Error(
                    f"{self.options['TASK']} is no task of the DatabaseBackend of django-tasks-db.",
                    hint="With django-tasks-rq or django-tasks-celery, use the backend for RQ or "
                    "Celery: the ids are theirs.",
                    id="django_run_cancel.E011",
                )
            ]
        return super().check(**kwargs)

    def ping(self) -> None:
        """Look for the table of the task results."""
        call_database(self._results.exists, self._results.db, self.alias, self.timeout)
