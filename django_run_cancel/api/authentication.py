"""Authentication by an API key in the ``x-api-key`` header."""

from __future__ import annotations

from django.contrib.auth.models import AnonymousUser
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from django_run_cancel.models import ApiKey


class ApiKeyAuthentication(BaseAuthentication):
    """Authenticates by API key, and sets ``request.auth`` to the ApiKey.

    If the header is present, even empty, a wrong key never falls back to the session.
    """

    def authenticate(self, request: Request) -> tuple[AnonymousUser, ApiKey] | None:
        """Return an anonymous user and the ApiKey, or None without the header.

        Raises:
            AuthenticationFailed: The key is unknown, expired or revoked. The status is 403, as the
                contract requires, because there is no ``WWW-Authenticate`` header.
        """
        header = request.META.get("HTTP_X_API_KEY")
        if header is None:
            return None
        key = ApiKey.authenticate(header)
        if key is None:
            raise AuthenticationFailed
        return AnonymousUser(), key
