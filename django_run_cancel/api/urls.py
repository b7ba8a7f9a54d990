"""URL patterns of the API: ``path("v1/", include("django_run_cancel.api.urls"))``."""

from __future__ import annotations

from typing import Any

from django.urls import URLPattern, path, register_converter

from django_run_cancel.api.cancellation_list_view import CancellationListView
from django_run_cancel.api.cancellation_views import (
    AbortCancellationView,
    CancellationDetailView,
    CancellationItemListView,
    RetryCancellationView,
)
from django_run_cancel.api.document_view import DocumentView
from django_run_cancel.api.run_views import (
    BulkCancelRunsView,
    CancelRunView,
    RunDetailView,
    RunListView,
)


class AnyIdConverter:
    """Matches any text as an id, so that invalid ids get the API's 404 response in JSON."""

    regex = r"(?s:.+?)"

    def to_python(self, value: str) -> str:
        """Return the id unchanged."""
        return value

    def to_url(self, value: str) -> str:
        """Return the id unchanged."""
        return value


register_converter(AnyIdConverter, "run_cancel_id")


def with_and_without_slash(route: str, view: Any, name: str) -> list[URLPattern]:
    """Return patterns for a route with a trailing slash, left out of the document, and without.

    The one with the slash comes first; otherwise the slash would become a part of the id.
    """
    return [
        path(f"{route}/", view.as_view(schema=None)),
        path(route, view.as_view(), name=name),
    ]


app_name = "django_run_cancel"

RUN_ID = "<run_cancel_id:run_id>"
CANCELLATION_ID = "<run_cancel_id:cancellation_id>"

urlpatterns = [
    path("openapi.json", DocumentView.as_view(schema=None), name="openapi"),
    *with_and_without_slash("runs/cancel", BulkCancelRunsView, "cancel-runs"),
    *with_and_without_slash(f"runs/{RUN_ID}/cancel", CancelRunView, "cancel-run"),
    *with_and_without_slash("runs", RunListView, "runs"),
    *with_and_without_slash(f"runs/{RUN_ID}", RunDetailView, "run"),
    *with_and_without_slash("cancellations", CancellationListView, "cancellations"),
    *with_and_without_slash(
        f"cancellations/{CANCELLATION_ID}/items", CancellationItemListView, "cancellation-items"
    ),
    *with_and_without_slash(
        f"cancellations/{CANCELLATION_ID}/retry", RetryCancellationView, "retry-cancellation"
    ),
    *with_and_without_slash(
        f"cancellations/{CANCELLATION_ID}/abort", AbortCancellationView, "abort-cancellation"
    ),
    *with_and_without_slash(
        f"cancellations/{CANCELLATION_ID}", CancellationDetailView, "cancellation"
    ),
]
