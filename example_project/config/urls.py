"""URLs of the example. The line of django-run-cancel is the first one."""

from __future__ import annotations

from crawler.views import ApiDocsView
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("v1/", include("django_run_cancel.api.urls")),
    path(
        "docs/", ApiDocsView.as_view(schema=None, url_name="django_run_cancel:openapi"), name="docs"
    ),
    path("admin/", admin.site.urls),
    path("", RedirectView.as_view(pattern_name="docs")),
]
