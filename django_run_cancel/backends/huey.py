"""Huey, on Redis or any other storage."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from django.utils.module_loading import import_string
from huey.api import Huey, TaskWrapper
from huey.exceptions import CancelExecution
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_run_cancel.backends.base import BackendError, BaseBackend, StopOutcome, StopRequest
from django_run_cancel.exceptions import RunCancelled, RunInProgress
from django_run_cancel.models import AbstractRun


@contextmanager
def cancel_refused() -> Iterator[None]:
    """Let a task whose run is cancelled, or being worked on already, end without a retry.

    Around an ``execution``.

    Raises:
        CancelExecution: Instead of ``RunCancelled`` and ``RunInProgress``.
    """
    try:
        yield
    except (RunCancelled, RunInProgress) as refused:
        raise CancelExecution(retry=False) from refused


class HueyBackend(BaseBackend):
    """Enqueues a task for each run, and revokes tasks.

    The id of the task is the external id. Huey has no way to stop running code; it only never
    starts a revoked task, and does not try it again.

    Options:
        TASK: Dotted path of the task; its only argument is the run id.
    """

    can_drop_queued = True
    stops_many = True
    required_options = frozenset({"TASK"})

    @property
    def task(self) -> TaskWrapper:
        """The task, which knows its Huey."""
        return import_string(self.options["TASK"])

    @contextmanager
    def _connect(self) -> Iterator[Huey]:
        """Give a copy of the Huey, whose connection is new and never waits for ever."""
        huey = self.task.huey
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

    def dispatch(self, run: AbstractRun) -> None:
        """Enqueue the task."""
        task = self.task.s(run.run_id)
        task.id = run.external_id
        try:
            with self._connect() as huey:
                huey.enqueue(task)
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
