"""A host that puts the API below prefixes which capture arguments."""

from __future__ import annotations

from django.urls import include, path

urlpatterns = [
    path("orgs/<slug:org>/v1/", include(("django_run_cancel.api.urls", "org"))),
    # The names of arguments that REST framework and this package use themselves.
    path(
        "by/<format>/<pk>/<run_id>/<cancellation_id>/v1/",
        include(("django_run_cancel.api.urls", "taken")),
    ),
    path("<version>/", include(("django_run_cancel.api.urls", "version"))),
]
