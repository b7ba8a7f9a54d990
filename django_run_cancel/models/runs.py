"""``AbstractRun``, the base of run models, with its transitions, and ``Run``, the default."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import UUID

from django.conf import settings as django_settings
from django.db import models, router, transaction
from django.db.models import Value
from django.db.models.functions import Coalesce, NullIf

from django_run_cancel.db import trees
from django_run_cancel.db.clock import DatabaseNow
from django_run_cancel.db.conditions import is_one_of
from django_run_cancel.exceptions import RunCancelled, StateNotWritable, TransitionNotAllowed
from django_run_cancel.models.managers import RunManager
from django_run_cancel.models.run_fields import RunFields
from django_run_cancel.states import (
    HANDED_BACK,
    SOURCES,
    TERMINAL,
    RunStatus,
    StopState,
    words_of_status,
    words_of_stop,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

    from django_run_cancel.cancellation import CancelResult

STATE_FIELDS = frozenset(
    {
        *("status", "queued_at", "dispatched_at", "dispatch_due_at", "dispatch_call"),
        *("started_at", "finished_at", "heartbeat_at", "execution_id", "failure_reason"),
        *("cancellation", "stop_state", "stopped_at"),
    }
)
"""Fields that only transitions and ``cancel_runs`` write once the run exists."""


class AbstractRun(RunFields):
    """One unit of work that can be cancelled.

    To use your own run model, inherit from this class and set ``RUN_CANCEL_RUN_MODEL``. Let its
    ``Meta`` inherit from ``AbstractRun.Meta``, which has the constraint, indexes and permissions.
    """

    objects: ClassVar[RunManager[AbstractRun]] = RunManager()  # type: ignore[assignment]  # the plugin says Self

    held_as: UUID | None = None
    """Id of the execution that uses this instance; transitions fail if another owns the run."""

    class Meta(RunFields.Meta):
        abstract = True

    def __str__(self) -> str:
        return str(self.title or self.run_id)

    def save(self, **kwargs: Any) -> None:
        """Save the run; an existing one without its ``STATE_FIELDS``.

        So an outdated instance cannot overwrite the status of a run that has been cancelled.

        Args:
            kwargs: As for ``Model.save()``.

        Raises:
            StateNotWritable: ``update_fields`` contains one of ``STATE_FIELDS``.
            ValueError: The run is new, and its status is not in ``RunStatus``.
        """
        update_fields: Iterable[str] | None = kwargs.get("update_fields")
        if update_fields is not None:
            kwargs["update_fields"] = update_fields = frozenset(update_fields)
            if owned := STATE_FIELDS.union({"cancellation_id"}).intersection(update_fields):
                raise StateNotWritable(self.run_id, sorted(owned))
        elif not kwargs.get("force_insert"):
            if self._state.adding:
                # Otherwise, Django tries an UPDATE first if the primary key is set, and could
                # overwrite the status of an existing run. A tuple of classes also forces the INSERT
                # into the tables of multi-table base classes.
                kwargs["force_insert"] = (models.Model,)
            elif self.pk is not None:
                kwargs["update_fields"] = self._fields_to_save()
        super().save(**kwargs)

    @property
    def state_words(self) -> Any:
        """Label of the status for users; for a cancelled run, that of its stop state."""
        if self.status == RunStatus.CANCELLED:
            return words_of_stop(self.stop_state or StopState.STOPPING)
        return words_of_status(self.status)

    def _fields_to_save(self) -> list[str]:
        deferred = self.get_deferred_fields()
        return [
            field.name
            for field in self._meta.concrete_fields
            if not field.primary_key
            and not field.generated
            and field.name not in STATE_FIELDS
            and field.attname not in deferred
        ]

    def transition_to(self, status: str, *, failure_reason: str | None = None) -> None:
        """Change the status of the run, if its status in the database allows that.

        One UPDATE filters by the allowed statuses. If it succeeds, the instance is updated.

        Args:
            status: The new status.
            failure_reason: Reason why the run ended, for users.

        Raises:
            TransitionNotAllowed: The status in the database does not allow the transition, or the
                run does not exist. ``cancelled`` is never allowed: use ``cancel_runs``.
        """
        values = {} if failure_reason is None else {"failure_reason": failure_reason}
        self._enter(status, **values)

    def _enter(self, status: str, **values: Any) -> None:
        sources = SOURCES[RunStatus(status)]
        rows = self._rows()
        if status == RunStatus.CANCELLED:
            current = rows.values_list("status", flat=True).first()
            raise TransitionNotAllowed(self.run_id, current, status, "Use cancel_runs().")
        now = DatabaseNow()
        if status == RunStatus.QUEUED:
            values["queued_at"] = now
        elif status == RunStatus.RUNNING:
            values |= {"started_at": Coalesce("started_at", now), "heartbeat_at": now}
            # Clear HANDED_BACK, as no execution owns the run; keep the id of one that does.
            values["execution_id"] = NullIf("execution_id", Value(HANDED_BACK, models.UUIDField()))
        elif status in TERMINAL:
            values["finished_at"] = now
        held = {} if self.held_as is None else {"execution_id": self.held_as}
        if not rows.filter(is_one_of("status", sources), **held).update(**values, status=status):
            current = rows.values_list("status", flat=True).first()
            self.status = str(current or self.status)
            hint = "Another execution holds it." if current in sources else ""
            raise TransitionNotAllowed(self.run_id, current, status, hint)
        self.refresh_from_db(using=rows.db, fields=["status", *values])

    def _rows(self) -> models.QuerySet[Any]:
        # With multi-table inheritance, use the base with the status, as ``run_rows`` explains.
        model = self._meta.get_field("status").model
        using = router.db_for_write(model, instance=self)
        return model._base_manager.using(using).filter(pk=getattr(self, model._meta.pk.attname))

    # Each of these raises TransitionNotAllowed as transition_to() does.

    def mark_queued(self) -> None:
        """Queue the run: ``created``, ``running`` (a retry), ``paused`` → ``queued``."""
        self.transition_to(RunStatus.QUEUED)

    def mark_running(self) -> None:
        """Start or resume the run: ``created``, ``queued``, ``paused`` → ``running``."""
        self.transition_to(RunStatus.RUNNING)

    def mark_paused(self) -> None:
        """Pause the run: ``running`` → ``paused``."""
        self.transition_to(RunStatus.PAUSED)

    def mark_completed(self) -> None:
        """End the run successfully: ``running`` → ``completed``."""
        self.transition_to(RunStatus.COMPLETED)

    def mark_failed(self, reason: str = "") -> None:
        """End the run with an error and a reason for users: any active status → ``failed``."""
        self.transition_to(RunStatus.FAILED, failure_reason=reason)

    def mark_terminated(self, reason: str = "") -> None:
        """End the run from outside, with a reason for users: any active status → ``terminated``."""
        self.transition_to(RunStatus.TERMINATED, failure_reason=reason)

    def mark_timed_out(self, reason: str = "") -> None:
        """End a run that takes too long, with a reason: any active status → ``timed_out``."""
        self.transition_to(RunStatus.TIMED_OUT, failure_reason=reason)

    def cancel(
        self,
        *,
        requested_by: str | AbstractBaseUser | AnonymousUser,
        reason: str = "",
        force: bool = False,
    ) -> CancelResult:
        """Cancel the run and its active descendants with ``cancel_runs()``.

        The instance is updated.

        Args:
            requested_by: The user who asks, or a label of up to 255 characters.
            reason: Reason, for users; up to 2,000 characters.
            force: Whether executors may kill started work at once, also if the run was cancelled
                before and is still stopping.

        Returns:
            The outcome of each run. A run that has finished is in ``failed``.

        Raises:
            ValueError: An argument is too long, blank or cannot be stored.
        """
        # Imported here to avoid a circular import.
        from django_run_cancel.cancellation import cancel_runs

        result = cancel_runs([self.run_id], requested_by=requested_by, reason=reason, force=force)
        fields = ["status", "finished_at", "cancellation", "stop_state", "stopped_at"]
        with suppress(type(self).DoesNotExist):  # the run has been deleted
            self.refresh_from_db(using=self._rows().db, fields=fields)
        return result

    def create_child(self, **fields: Any) -> Self:
        """Create a child of this run, unless the run or one of its ancestors has been cancelled.

        The ancestors stay locked until the transaction ends. So a concurrent cancellation either
        cancels the child, too, or makes this method raise ``RunCancelled``.

        Args:
            fields: Fields of the child. ``tenant`` and ``parent`` come from this run.

        Returns:
            The new run.

        Raises:
            RunCancelled: The run or one of its ancestors has been cancelled.
            DoesNotExist: The run has been deleted.
        """
        model = type(self)
        rows = self._rows()
        using = rows.db
        with transaction.atomic(using=using):
            pk = getattr(self, rows.model._meta.pk.attname)
            locked_runs = trees.lock_ancestors(rows.model, pk, using)
            if not locked_runs:
                raise model.DoesNotExist(f"Run {self.run_id} does not exist.")
            if any(run.status == RunStatus.CANCELLED for run in locked_runs):
                raise RunCancelled(self.run_id)
            child: Self = model._base_manager.using(using).create(
                parent=self, tenant=self.tenant, **fields
            )
            return child


class Run(AbstractRun):
    """The default run model."""

    objects: ClassVar[RunManager[Run]] = RunManager()  # type: ignore[assignment]  # of runs too

    class Meta(AbstractRun.Meta):
        abstract = False
        # Only if the host has the setting: otherwise Django would reference the missing setting in
        # migrations of hosts with a foreign key to this model.
        if hasattr(
            django_settings, "RUN_CANCEL_RUN_MODEL"
        ):  # pragma: no cover - tests/test_hosts.py
            swappable = "RUN_CANCEL_RUN_MODEL"
