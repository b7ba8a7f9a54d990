"""What strict hosts send with every page."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Allow the pages of the admin nothing inline and nothing from other hosts."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.path.startswith("/admin/"):
            response["Content-Security-Policy"] = "default-src 'self'; form-action 'self'"
        return response

    return middleware
