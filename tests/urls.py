"""URLs of the test project: the single line that the documentation asks for, and the admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("v1/", include("django_run_cancel.api.urls")),
    path("admin/", admin.site.urls),
]
