"""Rate limits for the scopes ``run_cancel`` and ``run_read``, if the host sets their rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rest_framework.request import Request
from rest_framework.settings import api_settings
from rest_framework.throttling import ScopedRateThrottle

from django_run_cancel.models import ApiKey

if TYPE_CHECKING:
    from rest_framework.views import APIView


class RunThrottle(ScopedRateThrottle):
    """Limits requests per API key or user. A scope without a rate has no limit."""

    def get_rate(self) -> str | None:
        """Return the rate of the scope in ``DEFAULT_THROTTLE_RATES`` at the time of the request."""
        rates: dict[str | None, Any] = api_settings.DEFAULT_THROTTLE_RATES  # type: ignore[assignment]  # stubs: scopes and rates of its own only
        rate: str | None = rates.get(self.scope)
        return rate

    def get_cache_key(self, request: Request, view: APIView) -> str:
        """Return the cache key of the caller's request counter."""
        if isinstance(request.auth, ApiKey):
            ident = f"key-{request.auth.pk}"
        else:
            ident = f"user-{request.user.pk}"
        return self.cache_format % {"scope": self.scope, "ident": ident}
