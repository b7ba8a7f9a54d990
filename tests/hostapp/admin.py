from __future__ import annotations

from django.contrib import admin

from django_run_cancel.admin import RunAdmin
from tests.hostapp.models import Job


@admin.register(Job)
class JobAdmin(RunAdmin):
    pass
