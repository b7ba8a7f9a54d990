"""Runs: the abstract model for hosts, the default model, and every way a status may change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self
from uuid import UUID

from django.apps import apps
from django.conf import settings as django_settings
from django.db import models, router, transaction
from django.db.models import Value
from django.db.models.functions import Coalesce, NullIf
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_run_cancel import sql
from django_run_cancel.conf import settings
from django_run_cancel.exceptions import RunCancelled, StateNotWritable, TransitionNotAllowed
from django_run_cancel.fields import ExactCharField, ParentField, RunIdField
from django_run_cancel.states import (
    ACTIVE,
    HANDED_BACK,
    SOURCES,
    TERMINAL,
    RunStatus,
    RunType,
    StopState,
    words_of_status,
    words_of_stop,
)

STATE_FIELDS = frozenset(
    {
        "status",
        "queued_at",
        "dispatched_at",
        "dispatch_due_at",
        "started_at",
        "finished_at",
        "heartbeat_at",
        "execution_id",
        "failure_reason",
        "cancellation",
        "stop_state",
        "stopped_at",
    }
)
"""Fields that only transitions and ``cancel_runs`` write once the run exists."""


class RunQuerySet(models.QuerySet["AbstractRun"]):
    """Query runs in the terms of their life."""

    def active(self) -> Self:
        """Return the runs that can still be cancelled."""
        return self.filter(status__in=ACTIVE)

    def terminal(self) -> Self:
        """Return the runs that have ended, in whichever way."""
        return self.filter(status__in=TERMINAL)


class AbstractRun(models.Model):
    """One piece of work that takes long enough to be cancelled.

    Subclass it for a run model of your own and name that in ``RUN_CANCEL_RUN_MODEL``; let your
    ``Meta`` inherit from ``AbstractRun.Meta``, which holds the constraint, the indexes and the
    permissions.
    """

    run_id = RunIdField(
        _("run id"),
        max_length=64,
        blank=True,
        help_text=_("Public id. Generated from the type when left blank."),
    )
    run_type = ExactCharField(_("type"), max_length=32, default=RunType.TASK)
    # Neither has choices: on an abstract field they would make every host write a migration
    # whenever a status or a type is added.
    status = ExactCharField(_("status"), max_length=16, default=RunStatus.CREATED)
    tenant = ExactCharField(
        _("tenant"), max_length=64, blank=True, default="", help_text=_("Key of the owner.")
    )
    parent = ParentField(
        "self",
        verbose_name=_("parent"),
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="children",
    )
    title = models.CharField(_("title"), max_length=200, blank=True, default="")
    metadata = models.JSONField(_("metadata"), blank=True, default=dict)
    backend = ExactCharField(
        _("backend"), max_length=64, blank=True, default="", help_text=_("Which executor runs it.")
    )
    external_id = ExactCharField(
        _("external id"), max_length=255, blank=True, default="", help_text=_("Its id there.")
    )
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    queued_at = models.DateTimeField(_("queued at"), null=True, blank=True)
    dispatched_at = models.DateTimeField(
        _("dispatched at"),
        null=True,
        blank=True,
        help_text=_("When its executor was last given it."),
    )
    dispatch_due_at = models.DateTimeField(
        _("dispatch due at"),
        null=True,
        blank=True,
        help_text=_("When to hand it over again; empty once that has succeeded."),
    )
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    heartbeat_at = models.DateTimeField(_("heartbeat at"), null=True, blank=True)
    execution_id = models.UUIDField(
        _("execution id"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Whose code holds the run; all zeros once it has left."),
    )
    failure_reason = models.TextField(_("failure reason"), blank=True, default="")
    cancellation = models.ForeignKey(
        "django_run_cancel.Cancellation",
        verbose_name=_("cancellation"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    stop_state = ExactCharField(_("stop state"), max_length=16, blank=True, default="")
    stopped_at = models.DateTimeField(_("stopped at"), null=True, blank=True)

    objects: ClassVar[models.Manager[Any]] = RunQuerySet.as_manager()

    held_as: UUID | None = None
    """Of the instance that an execution has: its id. Without the run it cannot move it."""

    class Meta:
        abstract = True
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            # Not unique=True: on PostgreSQL that would add a second index for LIKE.
            models.UniqueConstraint(fields=["run_id"], name="%(app_label)s_%(class)s_run_id"),
        ]
        # Without names: Django derives one per model, which fits hosts with long labels too.
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "created_at"]),
            models.Index(fields=["tenant", "status", "created_at"]),
            # The same for operators, who see all tenants.
            models.Index(fields=["created_at"]),
            models.Index(fields=["status", "created_at"]),
            models.Index(fields=["run_type", "created_at"]),
            models.Index(fields=["stop_state", "created_at"]),
            # For the delivery worker.
            models.Index(fields=["dispatch_due_at"]),
        ]
        permissions: ClassVar[list[tuple[str, Any]]] = [
            ("cancel_run", _("Can cancel runs")),
            ("force_cancel_run", _("Can cancel runs by force")),
        ]

    def __str__(self) -> str:
        return self.title or self.run_id

    def save(self, **kwargs: Any) -> None:
        """Save the run, without the fields that belong to the state machine once it exists.

        An instance that was read before the run was cancelled can therefore not bring it back.

        Args:
            kwargs: As for ``Model.save()``.

        Raises:
            StateNotWritable: ``update_fields`` names such a field.
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
        now = timezone.now()
        if status == RunStatus.QUEUED:
            values["queued_at"] = now
        elif status == RunStatus.RUNNING:
            values |= {"started_at": Coalesce("started_at", now), "heartbeat_at": now}
            # Who has left it does not hold it any more; who is at work does.
            values["execution_id"] = NullIf("execution_id", Value(HANDED_BACK, models.UUIDField()))
        elif status in TERMINAL:
            values["finished_at"] = now
        held = {} if self.held_as is None else {"execution_id": self.held_as}
        if not rows.filter(status__in=sources, **held).update(**values, status=status):
            current = rows.values_list("status", flat=True).first()
            self.status = current or self.status
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
            line = sql.lock_ancestors(rows.model, getattr(self, rows.model._meta.pk.attname), using)
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

    class Meta(AbstractRun.Meta):
        abstract = False
        # Undeclared, it would make Django write the setting into the migrations of hosts that have
        # a foreign key to this model.
        if hasattr(
            django_settings, "RUN_CANCEL_RUN_MODEL"
        ):  # pragma: no cover - tests/test_hosts.py
            swappable = "RUN_CANCEL_RUN_MODEL"


def get_run_model() -> type[AbstractRun]:
    """Return the run model of this project: ``Run``, or the one in ``RUN_CANCEL_RUN_MODEL``.

    Raises:
        LookupError: The setting names a model that is not installed.
        ValueError: The setting is not of the form ``app_label.ModelName``.
    """
    return apps.get_model(settings.RUN_MODEL, require_ready=False)


def run_rows(**lookups: Any) -> models.QuerySet[Any]:
    """Return the runs as the table that has their status, on the database that is written to.

    Of a subclass with a table of its own it is that of the base: through the subclass, ``update()``
    would look for the status first, and write without asking for it again.
    """
    table = get_run_model()._meta.get_field("status").model
    return table._base_manager.using(router.db_for_write(table)).filter(**lookups)
