"""The models of a host that brings its own run model."""

from __future__ import annotations

import uuid

from django.db import models

from django_run_cancel.models import AbstractRun


class Job(AbstractRun):
    key = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    priority = models.IntegerField(default=0)

    class Meta(AbstractRun.Meta):
        abstract = False
        verbose_name = "job"
