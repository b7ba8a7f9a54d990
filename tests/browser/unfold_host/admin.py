"""What a host with django-unfold writes: the theme's class beside ours, ours first."""

from __future__ import annotations

from django.contrib import admin
from unfold.admin import ModelAdmin

from django_run_cancel.admin import ApiKeyAdmin, CancellationAdmin, CancellationItemAdmin, RunAdmin
from django_run_cancel.models import ApiKey, Cancellation, CancellationItem, Run

admin.site.unregister([Run, Cancellation, CancellationItem, ApiKey])


@admin.register(Run)
class ThemedRunAdmin(RunAdmin, ModelAdmin):
    pass


@admin.register(Cancellation)
class ThemedCancellationAdmin(CancellationAdmin, ModelAdmin):
    pass


@admin.register(CancellationItem)
class ThemedCancellationItemAdmin(CancellationItemAdmin, ModelAdmin):
    pass


@admin.register(ApiKey)
class ThemedApiKeyAdmin(ApiKeyAdmin, ModelAdmin):
    pass
