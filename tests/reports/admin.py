from __future__ import annotations

from django.contrib import admin

from django_run_cancel.admin import CancelReferencedRunsAdminMixin
from tests.reports.models import Report


@admin.register(Report)
class ReportAdmin(CancelReferencedRunsAdminMixin, admin.ModelAdmin):
    pass
