"""The page that documents the API."""

from __future__ import annotations

from drf_spectacular.views import SpectacularSwaggerSplitView

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


class ApiDocsView(SpectacularSwaggerSplitView):
    """Swagger UI, with nothing inline and nothing from other hosts."""

    template_name = "crawler/docs.html"

    @property
    def default_response_headers(self) -> dict[str, str]:
        """Return the headers of every answer."""
        return super().default_response_headers | {
            "Content-Security-Policy": CONTENT_SECURITY_POLICY
        }
