"""The endpoint that serves the OpenAPI document."""

from __future__ import annotations

from typing import Any

from drf_spectacular.settings import spectacular_settings
from rest_framework.request import Request
from rest_framework.response import Response

from django_run_cancel.api.generics import RunCancelView
from django_run_cancel.api.schema import generate_document


class DocumentView(RunCancelView[Any]):
    """Serves the OpenAPI document, with the host's ``SERVE_PERMISSIONS`` of drf-spectacular.

    drf-spectacular's own view is not used, as it copies a query parameter into a response header.
    """

    permission_classes = spectacular_settings.SERVE_PERMISSIONS
    throttle_classes = ()

    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return the document."""
        return Response(generate_document(request))
