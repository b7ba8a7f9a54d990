"""Cancellations with their items and chunks: who cancelled which runs, and with which outcome."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_run_cancel.models.fields import ExactCharField, UnicodeTextField
from django_run_cancel.models.ids import new_cancellation_id
from django_run_cancel.models.indexes import NotNullIndex, PartialIndex
from django_run_cancel.states import (
    UNSETTLED,
    CancellationState,
    ChunkKind,
    ChunkState,
    Delivery,
    Outcome,
    Source,
    Via,
)

UNFINISHED = [Delivery.PENDING.value, Delivery.FAILED.value]
"""Delivery states that the worker (pending) or operators (failed) still have to deal with."""


class Cancellation(models.Model):
    """One request to cancel runs."""

    cancellation_id = ExactCharField(
        _("cancellation id"), max_length=64, default=new_cancellation_id, editable=False
    )
    tenant = ExactCharField(  # type: ignore[misc]  # null stands for several
        _("tenant"),
        max_length=64,
        null=True,
        blank=True,
        help_text=_("Empty value when the runs belong to several tenants, or to nobody."),
    )
    requested_by = ExactCharField(
        _("requested by"), max_length=255, help_text=_("Kept when the user or key is deleted.")
    )
    # No foreign key: users may be in another database, or be deleted later.
    user_id = ExactCharField(_("user id"), max_length=255, blank=True, default="")
    source = ExactCharField(_("source"), max_length=16, choices=Source)
    ip_address = models.GenericIPAddressField(_("IP address"), null=True, blank=True)
    request_id = ExactCharField(_("request id"), max_length=128, blank=True, default="")
    reason = UnicodeTextField(_("reason"), blank=True, default="")
    force = models.BooleanField(_("force"), default=False)
    idempotency_key = ExactCharField(  # type: ignore[misc]  # null stands for none
        _("idempotency key"), max_length=255, null=True, blank=True
    )
    request_digest = ExactCharField(
        _("request digest"),
        max_length=64,
        blank=True,
        default="",
        help_text=_("SHA-256 of the request that the idempotency key stands for."),
    )
    requested_at = models.DateTimeField(_("requested at"), default=timezone.now, editable=False)
    total_count = models.PositiveIntegerField(_("runs asked for"), default=0)
    cancelled_count = models.PositiveIntegerField(_("of these cancelled"), default=0)
    already_count = models.PositiveIntegerField(_("of these cancelled before"), default=0)
    failed_count = models.PositiveIntegerField(_("of these failed"), default=0)
    cascaded_count = models.PositiveIntegerField(_("children cancelled"), default=0)
    # A bulk cancellation gets its counts at its end; until then, ``progress_of`` adds up those of
    # its chunks.
    state = ExactCharField(
        _("state"),
        max_length=16,
        choices=CancellationState,
        default=CancellationState.COMPLETED,
    )
    selection = models.JSONField(
        _("selection"),
        null=True,
        blank=True,
        help_text=_("Of a bulk cancellation: which runs were asked for."),
    )
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)

    class Meta:
        verbose_name = _("cancellation")
        verbose_name_plural = _("cancellations")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["cancellation_id"], name="run_cancel_cancellation_id_unique"
            ),
            models.UniqueConstraint(
                fields=["idempotency_key", "requested_by", "source"],
                name="run_cancel_idempotency_unique",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "requested_at"], name="run_cancel_can_tenant_idx"),
            models.Index(fields=["requested_at"], name="run_cancel_can_requested_idx"),
            PartialIndex(
                fields=["state"],
                where=Q(state__in=sorted(state.value for state in UNSETTLED)),
                name="run_cancel_can_state_idx",
            ),
        ]

    def __str__(self) -> str:
        return str(self.cancellation_id)


class CancellationItem(models.Model):
    """One run in a cancellation: its outcome, and the state of the stop request to its executor.

    Without a foreign key to the run, items outlive runs, and inserting an item locks no run.
    """

    cancellation = models.ForeignKey(
        Cancellation,
        verbose_name=_("cancellation"),
        on_delete=models.CASCADE,
        related_name="items",
    )
    run_id = ExactCharField(
        _("run id"),
        max_length=64,
        help_text=_("As asked for; escaped and cut when no run could have such an id."),
    )
    outcome = ExactCharField(_("outcome"), max_length=20, choices=Outcome)
    via = ExactCharField(_("via"), max_length=16, choices=Via)
    previous_status = ExactCharField(_("previous status"), max_length=16, blank=True, default="")
    backend = ExactCharField(_("backend"), max_length=64, blank=True, default="")
    external_id = ExactCharField(_("external id"), max_length=255, blank=True, default="")
    delivery = ExactCharField(
        _("delivery"), max_length=16, choices=Delivery, default=Delivery.NOT_NEEDED
    )
    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)
    next_attempt_at = models.DateTimeField(_("next attempt at"), null=True, blank=True)
    # Token of the delivery worker that has claimed the item, and the time when the claim expires.
    claimed_by = models.UUIDField(_("claimed by"), null=True, blank=True)
    claimed_until = models.DateTimeField(_("claimed until"), null=True, blank=True)
    # When the worker sends a stop request with force, unless the run has stopped by then.
    escalates_at = models.DateTimeField(_("escalates at"), null=True, blank=True)
    last_error = UnicodeTextField(_("last error"), blank=True, default="")
    force = models.BooleanField(
        _("force"), default=False, help_text=_("Asked for, or escalated to after the grace.")
    )
    # The same fields for calling the functions in RUN_CANCEL_HANDLERS.
    handling = ExactCharField(
        _("handlers called"), max_length=16, choices=Delivery, default=Delivery.NOT_NEEDED
    )
    handling_attempts = models.PositiveSmallIntegerField(_("attempts to call handlers"), default=0)
    next_handling_at = models.DateTimeField(_("next call of handlers at"), null=True, blank=True)
    handling_claimed_by = models.UUIDField(_("handlers claimed by"), null=True, blank=True)
    handling_claimed_until = models.DateTimeField(
        _("handlers claimed until"), null=True, blank=True
    )
    handling_error = UnicodeTextField(_("error of a handler"), blank=True, default="")

    class Meta:
        verbose_name = _("cancellation item")
        verbose_name_plural = _("cancellation items")
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["run_id"], name="run_cancel_item_run_idx"),
            # With the backend, as the worker claims items of one backend at a time.
            PartialIndex(
                fields=["delivery", "backend", "next_attempt_at"],
                where=Q(delivery__in=UNFINISHED),
                name="run_cancel_item_due_idx",
            ),
            NotNullIndex(fields=["claimed_until"], name="run_cancel_item_claimed_idx"),
            NotNullIndex(fields=["escalates_at"], name="run_cancel_item_escalate_idx"),
            PartialIndex(
                fields=["handling", "next_handling_at"],
                where=Q(handling__in=UNFINISHED),
                name="run_cancel_item_handle_idx",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.run_id}: {self.get_outcome_display()}"


class CancellationChunk(models.Model):
    """Ids of runs that delivery workers still have to process for a cancellation.

    The transaction that cancels runs also advances the ``position`` of their chunk, so that workers
    process each run exactly once.
    """

    cancellation = models.ForeignKey(
        Cancellation,
        verbose_name=_("cancellation"),
        on_delete=models.CASCADE,
        related_name="chunks",
        db_index=False,  # see Meta
    )
    kind = ExactCharField(_("kind"), max_length=16, choices=ChunkKind)
    state = ExactCharField(
        _("state"), max_length=16, choices=ChunkState, default=ChunkState.PENDING
    )
    # Emptied when all runs have been processed.
    run_ids = models.JSONField(_("run ids"))
    hidden_ids = models.JSONField(
        _("hidden ids"),
        default=list,
        help_text=_("Those of them that are unknown, or out of reach of whoever asked."),
    )
    size = models.PositiveIntegerField(_("runs"), help_text=_("How many there are."))
    position = models.PositiveIntegerField(
        _("position"), default=0, help_text=_("How many have been dealt with.")
    )
    after_key = ExactCharField(
        _("after key"),
        max_length=255,
        blank=True,
        default="",
        help_text=_("Key of the last run that was found below them."),
    )
    cancelled_count = models.PositiveIntegerField(_("of these cancelled"), default=0)
    already_count = models.PositiveIntegerField(_("of these cancelled before"), default=0)
    failed_count = models.PositiveIntegerField(_("of these failed"), default=0)
    cascaded_count = models.PositiveIntegerField(_("children cancelled"), default=0)
    advanced_at = models.DateTimeField(_("advanced at"), default=timezone.now)
    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)
    next_attempt_at = models.DateTimeField(_("next attempt at"), null=True, blank=True)
    last_error = UnicodeTextField(_("last error"), blank=True, default="")

    class Meta:
        verbose_name = _("cancellation chunk")
        verbose_name_plural = _("cancellation chunks")
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["cancellation", "state"], name="run_cancel_chunk_state_idx"),
            PartialIndex(
                fields=["state", "cancellation"],
                where=Q(state=ChunkState.PENDING.value),
                name="run_cancel_chunk_due_idx",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.size}"
