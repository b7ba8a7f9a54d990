"""A host's own table of jobs, whose rows refer to runs in each way there is."""

from __future__ import annotations

from django.db import models

from django_run_cancel.conf import settings


class Report(models.Model):
    name = models.CharField(max_length=50)
    status = models.CharField(max_length=20, default="cancelled")  # of the host, not of the run
    run = models.ForeignKey(settings.RUN_MODEL, models.SET_NULL, null=True, related_name="+")
    only_run = models.OneToOneField(
        settings.RUN_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    task_id = models.CharField(max_length=255, blank=True)
    task_uuid = models.UUIDField(null=True)
