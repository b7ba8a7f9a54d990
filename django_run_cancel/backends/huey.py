"""Huey, on Redis or any other storage: waiting tasks are revoked."""

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
"""How the id of a task begins that ``dispatch()`` has sent: its function gets the run id."""


class HueyBackend(BaseBackend):
    """Enqueues a task for each run, and revokes tasks.

    The id of the task is the external id. Huey has no way to stop running code; it only never
    starts a revoked task, and does not try it again.

    Options:
        TASK: Dotted path of the task of runs that are dispatched without one.
        HUEY: Dotted path of the Huey; needed without ``TASK``, which knows its own.
    """

    optional_options = frozenset({"HUEY"})
    task_option = "TASK"
    dispatch_options = frozenset({"delay", "expires", "priority", "retries", "retry_delay"})

    def __init__(self, alias: str, options: Mapping[str, Any]) -> None:
        super().__init__(alias, options)
        if not {"TASK", "HUEY"} & set(options):
            raise ImproperlyConfigured(f"Backend {alias!r} needs OPTIONS: TASK or HUEY.")

    def new_external_id(self, run: AbstractRun) -> str:
        """Return the id of the task of a run."""
        return f"{DISPATCHED}{uuid.uuid4()}"

    @property
    def huey(self) -> Huey:
        """The Huey: the one in the options, or that of the task."""
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
        """Check the call, and that no argument has the name of an option: Huey takes it for one."""
        super().check_call(call)
        if taken := sorted(self.dispatch_options & set(call.kwargs)):
            raise TypeError(f"Huey takes {', '.join(taken)} in kwargs for its own.")

    @contextmanager
    def _connect(self) -> Iterator[Huey]:
        """Give a copy of the Huey, whose connection is new and never waits for ever."""
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

    def dispatch(self, run: AbstractRun, call: TaskCall = TaskCall()) -> None:  # noqa: B008
        """Enqueue the task."""
        work = self.get_task(call.task or self.options["TASK"])
        task = work.s(run.run_id, *call.args, **call.kwargs, **call.options)
        task.id = run.external_id
        try:
            with self._connect() as huey:
                # An integration has replaced the method of the instance, which has no timeout.
                type(huey).enqueue(huey, task)
        except Exception as error:
            raise BackendError(f"Huey: {error}") from error

    def stop(
        self, requests: Sequence[StopRequest], *, force: bool
    ) -> Mapping[str, StopOutcome | Exception]:
        """Revoke tasks. One that runs ends at its checkpoints, or if it asks ``is_revoked()``."""
        outcomes: dict[str, StopOutcome | Exception] = {
            request.external_id: StopOutcome.UNSUPPORTED if request.running else StopOutcome.TOLD
            for request in requests
        }
        try:
            with self._connect() as huey:
                for external_id in outcomes:
                    # Once: the mark then goes with the task that it kept from running.
                    huey.revoke_by_id(external_id, revoke_once=True)
        except Exception as error:  # noqa: BLE001 - any storage
            return dict.fromkeys(outcomes, error)
        return outcomes

    def ping(self) -> None:
        """Ask the storage for something."""
        with self._connect() as huey:
            huey.pending_count()
