"""``RunFields``: fields, constraint, indexes and permissions of the run model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_run_cancel.models.fields import (
    ExactCharField,
    ParentField,
    RunIdField,
    StatusField,
    UnicodeCharField,
    UnicodeTextField,
)
from django_run_cancel.models.indexes import NotNullIndex, PartialIndex
from django_run_cancel.states import RunStatus, RunType

if TYPE_CHECKING:
    from datetime import datetime

    from django.db.models.expressions import Combinable

    # Spelled out for type checkers without plugins.
    DateTimeField = models.DateTimeField[datetime | Combinable, datetime]
    OptionalDateTimeField = models.DateTimeField[datetime | Combinable | None, datetime | None]

HAS_RARE_STATUS = ~Q(status__in=[RunStatus.CANCELLED.value, RunStatus.COMPLETED.value])
"""Condition of partial indexes: excludes the statuses that most runs of a large table have.

Queries for cancelled runs use the index of ``stop_state``.
"""


class RunFields(models.Model):
    """Abstract model with the fields of a run; ``AbstractRun`` adds the methods."""

    run_id = RunIdField(
        _("run id"),
        max_length=64,
        blank=True,
        help_text=_("Public id. Generated from the type when left blank."),
    )
    run_type = ExactCharField(_("type"), max_length=32, default=RunType.TASK)
    # Without choices: with them, each new status or type would need a migration in every host.
    status = StatusField(_("status"), max_length=16, default=RunStatus.CREATED)
    tenant = ExactCharField(
        _("tenant"), max_length=64, blank=True, default="", help_text=_("Key of the owner.")
    )
    parent = ParentField(
        "self",
        verbose_name=_("parent"),
        null=True,
        blank=True,
        db_index=False,  # see Meta
        on_delete=models.CASCADE,
        related_name="children",
    )
    title = UnicodeCharField(_("title"), max_length=200, blank=True, default="")
    metadata = models.JSONField(_("metadata"), blank=True, default=dict)
    backend = ExactCharField(
        _("backend"), max_length=64, blank=True, default="", help_text=_("Which executor runs it.")
    )
    external_id = ExactCharField(
        _("external id"), max_length=255, blank=True, default="", help_text=_("Its id there.")
    )
    created_at: DateTimeField = models.DateTimeField(
        _("created at"), default=timezone.now, editable=False
    )
    queued_at: OptionalDateTimeField = models.DateTimeField(_("queued at"), null=True, blank=True)
    dispatched_at: OptionalDateTimeField = models.DateTimeField(
        _("dispatched at"),
        null=True,
        blank=True,
        help_text=_("When its executor was last given it."),
    )
    dispatch_due_at: OptionalDateTimeField = models.DateTimeField(
        _("dispatch due at"),
        null=True,
        blank=True,
        help_text=_("When to hand it over again; empty once that has succeeded."),
    )
    dispatch_call = models.JSONField(
        _("dispatch call"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Task, arguments and options until it is handed over."),
    )
    started_at: OptionalDateTimeField = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at: OptionalDateTimeField = models.DateTimeField(
        _("finished at"), null=True, blank=True
    )
    heartbeat_at: OptionalDateTimeField = models.DateTimeField(
        _("heartbeat at"), null=True, blank=True
    )
    execution_id = models.UUIDField(
        _("execution id"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Whose code holds the run; all zeros once it has left."),
    )
    failure_reason = UnicodeTextField(_("failure reason"), blank=True, default="")
    cancellation = models.ForeignKey(
        "django_run_cancel.Cancellation",
        verbose_name=_("cancellation"),
        null=True,
        blank=True,
        db_index=False,  # see Meta
        on_delete=models.SET_NULL,
        related_name="+",
    )
    stop_state = ExactCharField(_("stop state"), max_length=16, blank=True, default="")
    stopped_at: OptionalDateTimeField = models.DateTimeField(_("stopped at"), null=True, blank=True)

    class Meta:
        abstract = True
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            # Not unique=True, which would create a second index for LIKE on PostgreSQL.
            models.UniqueConstraint(fields=["run_id"], name="%(app_label)s_%(class)s_run_id"),
        ]
        # Without names, so that Django derives a name of valid length for each model. On PostgreSQL
        # a change of the status writes to at most seven indexes, including those of run_id and the
        # primary key; tests/models/test_indexes.py counts them.
        indexes: ClassVar[list[models.Index]] = [
            NotNullIndex(fields=["parent", "created_at"]),
            NotNullIndex(fields=["cancellation"]),
            models.Index(fields=["tenant", "created_at"]),
            PartialIndex(fields=["tenant", "status", "created_at"], where=HAS_RARE_STATUS),
            # The same for operators, who see all tenants.
            models.Index(fields=["created_at"]),
            PartialIndex(fields=["status", "created_at"], where=HAS_RARE_STATUS),
            PartialIndex(fields=["stop_state", "created_at"], where=~Q(stop_state="")),
            # For the delivery worker.
            NotNullIndex(fields=["dispatch_due_at"]),
        ]
        permissions: ClassVar[list[tuple[str, Any]]] = [
            ("cancel_run", _("Can cancel runs")),
            ("force_cancel_run", _("Can cancel runs by force")),
        ]
