"""The models of a host that brings its own run model."""

from __future__ import annotations

import time
import uuid

from django.db import models

from django_run_cancel.models import AbstractRun


def descending_key() -> uuid.UUID:
    """Return a key below all earlier ones, so that a test which relies on their order fails."""
    left = 2**64 - time.time_ns()
    return uuid.UUID(int=(left << 64) | (uuid.uuid4().int & (2**64 - 1)))


class Job(AbstractRun):
    key = models.UUIDField(primary_key=True, default=descending_key, editable=False)
    priority = models.IntegerField(default=0)

    class Meta(AbstractRun.Meta):
        abstract = False
        verbose_name = "job"
