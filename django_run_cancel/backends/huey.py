"""Huey backend, for any storage: revokes waiting tasks."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from huey.api import Huey, TaskWrapper
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_run_cancel.backends.base import (
    BackendError,
    BaseBackend,
    StopOutcome,
    StopRequest,
    TaskCall,
)
from django_run_cancel.exceptions import UnknownTask
from django_run_cancel.models import AbstractRun

DISPATCHED = "run_cancel-"
"""Prefix of the ids of tasks that ``dispatch()`` sends, whose first argument is the run id."""


class HueyBackend(BaseBackend):
    """Enqueues a task for each run, and revokes tasks.

    The external id is the id of the task. Huey neither starts nor retries a revoked task, but
    cannot stop running code.

    Options:
        TASK: Dotted path of the default task.
        HUEY: Dotted path of the Huey instance; required without ``TASK``.
    """

    optional_options = frozenset({"HUEY"})
    task_option = "TASK"
    dispatch_options = frozenset({"delay", "expires", "priority", "retries", "retry_delay"})

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        super().__init__(alias, options)
        if not {"TASK", "HUEY"} & set(options):
            raise ImproperlyConfigured(f"Backend {alias!r} needs OPTIONS: TASK or HUEY.")

    def new_external_id(self, run: AbstractRun) -> str:
        """Return an id for the task of a run."""
        return f"{DISPATCHED}{uuid.uuid4()}"

    @property
    def huey(self) -> Huey:
        """The Huey instance in the options, or that of the default task."""
        if "HUEY" in self.options:
            return import_string(self.options["HUEY"])
        return self.get_task(self.options["TASK"]).huey

    def get_task(self, name: str) -> TaskWrapper:
        """Return the task with this dotted path."""
        task = super().get_task(name)
        if not isinstance(task, TaskWrapper):
            raise UnknownTask(self.alias, name)
        return task

    def check_call(self, call: TaskCall) -> None:
        """Validate the call; Huey would take arguments with the name of an option as the option."""
        super().check_call(call)
        if taken := sorted(self.dispatch_options & set(call.kwargs)):
            raise TypeError(f"Huey takes {', '.join(taken)} in kwargs for its own.")

    @contextmanager
    def _connect(self) -> Iterator[Huey]:
        """Yield a copy of the Huey instance that has a new connection with timeouts."""
        huey = self.huey
        pool = getattr(huey.storage, "pool", None)
        if not isinstance(pool, ConnectionPool):
            yield huey
            return
        bounds = {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        bounded = copy.copy(huey)
        bounded.storage = copy.copy(huey.storage)
        with Redis(
            connection_pool=ConnectionPool(
                connection_class=pool.connection_class, **{**pool.connection_kwargs, **bounds}
            )
        ) as client:
            bounded.storage.conn = client
            yield bounded
            client.connection_pool.disconnect()

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008  # immutable
        """Enqueue the task."""
        work = self.get_task(call.task or self.options["TASK"])
        task = work.s(run.run_id, *call.args, **call.kwargs, **call.options)
        task.id = run.external_id
        try:
            with self._connect() as huey:
                # The method of the class: the integration replaces that of the instance.
                type(huey).enqueue(huey, task)
        except Exception as error:
            raise BackendError(f"Huey: {error}") from error

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Revoke tasks. Running code ends at its checkpoints, or if it calls ``is_revoked()``."""
        outcomes: dict[str, StopOutcome | Exception] = {
            request.external_id: StopOutcome.UNSUPPORTED if request.running else StopOutcome.TOLD
            for request in requests
        }
        try:
            with self._connect() as huey:
                for external_id in outcomes:
                    # With ``revoke_once``, Huey deletes the mark with the task that it skips.
                    huey.revoke_by_id(external_id, revoke_once=True)
        except Exception as error:  # noqa: BLE001 - any storage
            return dict.fromkeys(outcomes, error)
        return outcomes

    def ping(self) -> None:
        """Query the storage."""
        with self._connect() as huey:
            huey.pending_count()
