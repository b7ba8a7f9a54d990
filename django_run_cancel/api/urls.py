"""``path("v1/", include("django_run_cancel.api.urls"))`` and nothing else is needed."""

from __future__ import annotations

from typing import Any

from django.urls import URLPattern, path, register_converter

from django_run_cancel.api.document import DocumentView
from django_run_cancel.api.records import (
    CancellationItemListView,
    CancellationListView,
    CancellationView,
    RetryCancellationView,
)
from django_run_cancel.api.views import BulkCancelRunsView, CancelRunView, RunListView, RunView


class AnyIdConverter:
    """Takes whatever a client puts in the place of an id, so that the answer is ours, in JSON."""

    regex = r"(?s:.+?)"

    def to_python(self, value: str) -> str:
        """Return the id as sent."""
        return value

    def to_url(self, value: str) -> str:
        """Return the id as it goes into a URL."""
        return value


register_converter(AnyIdConverter, "run_cancel_id")


def both(route: str, view: Any, name: str) -> list[URLPattern]:
    """Return the route without a trailing slash and, kept out of the document, with one.

    That one comes first, or its slash would be taken for a part of the id.
    """
    return [
        path(f"{route}/", view.as_view(schema=None)),
        path(route, view.as_view(), name=name),
    ]


app_name = "django_run_cancel"

urlpatterns = [
    path("openapi.json", DocumentView.as_view(schema=None), name="openapi"),
    *both("runs/cancel", BulkCancelRunsView, "cancel-runs"),
    *both("runs/<run_cancel_id:run_id>/cancel", CancelRunView, "cancel-run"),
    *both("runs", RunListView, "runs"),
    *both("runs/<run_cancel_id:run_id>", RunView, "run"),
    *both("cancellations", CancellationListView, "cancellations"),
    *both(
        "cancellations/<run_cancel_id:cancellation_id>/items",
        CancellationItemListView,
        "cancellation-items",
    ),
    *both(
        "cancellations/<run_cancel_id:cancellation_id>/retry",
        RetryCancellationView,
        "retry-cancellation",
    ),
    *both("cancellations/<run_cancel_id:cancellation_id>", CancellationView, "cancellation"),
]
