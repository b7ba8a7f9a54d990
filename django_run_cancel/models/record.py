"""The record: what was asked, by whom and why, and what happened to each run."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_run_cancel.fields import ExactCharField
from django_run_cancel.ids import new_cancellation_id
from django_run_cancel.states import CancellationState, Delivery, Outcome, Source, Via


class Cancellation(models.Model):
    """One request to cancel runs."""

    cancellation_id = ExactCharField(
        _("cancellation id"), max_length=64, default=new_cancellation_id, editable=False
    )
    tenant = ExactCharField(
        _("tenant"),
        max_length=64,
        null=True,
        blank=True,
        help_text=_("Empty value when the runs belong to several tenants, or to nobody."),
    )
    requested_by = ExactCharField(
        _("requested by"), max_length=255, help_text=_("Kept when the user or key is deleted.")
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    source = ExactCharField(_("source"), max_length=16, choices=Source)
    ip_address = models.GenericIPAddressField(_("IP address"), null=True, blank=True)
    request_id = ExactCharField(_("request id"), max_length=128, blank=True, default="")
    reason = models.TextField(_("reason"), blank=True, default="")
    force = models.BooleanField(_("force"), default=False)
    idempotency_key = ExactCharField(_("idempotency key"), max_length=255, null=True, blank=True)
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
    failed_count = models.PositiveIntegerField(_("of these failed"), default=0)
    cascaded_count = models.PositiveIntegerField(_("children cancelled"), default=0)
    # The following describe a cancellation that is worked off in several transactions.
    selection = models.JSONField(_("selection"), null=True, blank=True)
    state = ExactCharField(
        _("state"), max_length=16, choices=CancellationState, default=CancellationState.FINISHED
    )
    progress = models.JSONField(_("progress"), null=True, blank=True)

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
        ]

    def __str__(self) -> str:
        return str(self.cancellation_id)


class CancellationItem(models.Model):
    """One run in a cancellation: what happened to it, and whether its executor has been told.

    It has no foreign key to the run. History outlives its subject, and a lock on the run table is
    nobody's business here.
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
    last_error = models.TextField(_("last error"), blank=True, default="")
    force = models.BooleanField(
        _("force"), default=False, help_text=_("Asked for, or escalated to after the grace.")
    )
    # The same for the handlers of the host, in RUN_CANCEL_HANDLERS.
    handling = ExactCharField(
        _("handling"), max_length=16, choices=Delivery, default=Delivery.NOT_NEEDED
    )
    handling_attempts = models.PositiveSmallIntegerField(_("handling attempts"), default=0)
    next_handling_at = models.DateTimeField(_("next handling at"), null=True, blank=True)
    handling_error = models.TextField(_("handling error"), blank=True, default="")

    class Meta:
        verbose_name = _("cancellation item")
        verbose_name_plural = _("cancellation items")
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["run_id"], name="run_cancel_item_run_idx"),
            models.Index(fields=["delivery", "next_attempt_at"], name="run_cancel_item_due_idx"),
            models.Index(
                fields=["handling", "next_handling_at"], name="run_cancel_item_handle_idx"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.run_id}: {self.get_outcome_display()}"
