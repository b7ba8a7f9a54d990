"""Runs: the abstract model for hosts, the default model, and every way a status may change."""

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
    """One piece of work that takes long enough to be cancelled.

    Subclass it for a run model of your own and name that in ``RUN_CANCEL_RUN_MODEL``; let your
    ``Meta`` inherit from ``AbstractRun.Meta``, which holds the constraint, the indexes and the
    permissions.
    """

    objects: ClassVar[RunManager[AbstractRun]] = RunManager()  # type: ignore[assignment]  # the plugin says Self

    held_as: UUID | None = None
    """Id of the execution this instance acts for; transitions fail once the run is taken over."""

    class Meta(RunFields.Meta):
        abstract = True

    def __str__(self) -> str:
        return str(self.title or self.run_id)

    def save(self, **kwargs: Any) -> None:
        """Save the run, without the fields that belong to the state machine once it exists.

        An instance that was read before the run was cancelled can therefore not bring it back.

        Args:
            kwargs: As for ``Model.save()``.

        Raises:
            StateNotWritable: ``update_fields`` names such a field.
            ValueError: The run is new, and its status is none.
        """
        update_fields: Iterable[str] | None = kwargs.get("update_fields")
        if update_fields is not None:
            kwargs["update_fields"] = update_fields = frozenset(update_fields)
            if owned := STATE_FIELDS.union({"cancellation_id"}).intersection(update_fields):
                raise StateNotWritable(self.run_id, sorted(owned))
        elif not kwargs.get("force_insert"):
            if self._state.adding:
                # Django would first try an UPDATE, which could overwrite the status of that run;
                # with a subclass that has a table of its own, in the table of the base.
                kwargs["force_insert"] = (models.Model,)
            elif self.pk is not None:
                kwargs["update_fields"] = self._fields_to_save()
        super().save(**kwargs)

    @property
    def state_words(self) -> Any:
        """The state for people: that of a cancelled run says how far its work has stopped."""
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
        """Move the run to another status, if the status it has in the database allows it.

        One compare-and-set statement; the instance is updated when it succeeds.

        Args:
            status: The status to enter.
            failure_reason: Why the run ended, for people.

        Raises:
            TransitionNotAllowed: The run has another status by now, or is gone. ``cancelled`` is
                never allowed here: only ``cancel_runs`` cancels.
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
            # A run that its code has left has no owner; that of code at work stays.
            values["execution_id"] = NullIf("execution_id", Value(HANDED_BACK, models.UUIDField()))
        elif status in TERMINAL:
            values["finished_at"] = now
        held = {} if self.held_as is None else {"execution_id": self.held_as}
        if not rows.filter(status__in=sources, **held).update(**values, status=status):
            current = rows.values_list("status", flat=True).first()
            self.status = str(current or self.status)
            hint = "Another execution holds it." if current in sources else ""
            raise TransitionNotAllowed(self.run_id, current, status, hint)
        self.refresh_from_db(using=rows.db, fields=["status", *values])

    def _rows(self) -> models.QuerySet[Any]:
        # The table with the status, of a subclass that has a table of its own: an UPDATE through
        # the subclass would look for the status first and write without asking for it again.
        model = self._meta.get_field("status").model
        using = router.db_for_write(model, instance=self)
        return model._base_manager.using(using).filter(pk=getattr(self, model._meta.pk.attname))

    # Each of these raises TransitionNotAllowed as transition_to() does.

    def mark_queued(self) -> None:
        """Hand over to the queue: ``created``, ``running`` (a retry), ``paused`` → ``queued``."""
        self.transition_to(RunStatus.QUEUED)

    def mark_running(self) -> None:
        """Start or resume: ``created``, ``queued``, ``paused`` → ``running``."""
        self.transition_to(RunStatus.RUNNING)

    def mark_paused(self) -> None:
        """Pause: ``running`` → ``paused``."""
        self.transition_to(RunStatus.PAUSED)

    def mark_completed(self) -> None:
        """End well: ``running`` → ``completed``."""
        self.transition_to(RunStatus.COMPLETED)

    def mark_failed(self, reason: str = "") -> None:
        """End with an error, explained for people: any active status → ``failed``."""
        self.transition_to(RunStatus.FAILED, failure_reason=reason)

    def mark_terminated(self, reason: str = "") -> None:
        """End from outside, explained for people: any active status → ``terminated``."""
        self.transition_to(RunStatus.TERMINATED, failure_reason=reason)

    def mark_timed_out(self, reason: str = "") -> None:
        """End for taking too long, explained for people: any active status → ``timed_out``."""
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
            requested_by: Who asks: a user, or a label of up to 255 characters.
            reason: Why, for people; up to 2,000 characters.
            force: Whether executors may kill at once what has started, also when the run was
                cancelled before and is still stopping.

        Returns:
            What happened to each run. One that has finished is in ``failed``.

        Raises:
            ValueError: An argument is too long, blank or cannot be stored.
        """
        # Above this module, as it needs models; only here do runs need it.
        from django_run_cancel.cancellation import cancel_runs

        result = cancel_runs([self.run_id], requested_by=requested_by, reason=reason, force=force)
        fields = ["status", "finished_at", "cancellation", "stop_state", "stopped_at"]
        with suppress(type(self).DoesNotExist):  # the run has been deleted, and is in failed
            self.refresh_from_db(using=self._rows().db, fields=fields)
        return result

    def create_child(self, **fields: Any) -> Self:
        """Create a run below this one, unless this run or one above it has been cancelled.

        The lock on the runs above is held until the transaction ends, so that a cancellation
        either sees the child or is seen here.

        Args:
            fields: Fields of the child. ``tenant`` and ``parent`` come from this run.

        Returns:
            The new run.

        Raises:
            RunCancelled: This run or one above it is cancelled.
            DoesNotExist: This run has been deleted.
        """
        model = type(self)
        rows = self._rows()
        using = rows.db
        with transaction.atomic(using=using):
            pk = getattr(self, rows.model._meta.pk.attname)
            line = trees.lock_ancestors(rows.model, pk, using)
            if not line:
                raise model.DoesNotExist(f"Run {self.run_id} does not exist.")
            if any(run.status == RunStatus.CANCELLED for run in line):
                raise RunCancelled(self.run_id)
            child: Self = model._base_manager.using(using).create(
                parent=self, tenant=self.tenant, **fields
            )
            return child


class Run(AbstractRun):
    """The run model of hosts that do not bring their own."""

    objects: ClassVar[RunManager[Run]] = RunManager()  # type: ignore[assignment]  # of runs too

    class Meta(AbstractRun.Meta):
        abstract = False
        # Undeclared, it would make Django write the setting into the migrations of hosts that have
        # a foreign key to this model.
        if hasattr(
            django_settings, "RUN_CANCEL_RUN_MODEL"
        ):  # pragma: no cover - tests/test_hosts.py
            swappable = "RUN_CANCEL_RUN_MODEL"
