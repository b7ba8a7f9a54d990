"""Authentication by an API key in the ``x-api-key`` header."""

from __future__ import annotations

from django.contrib.auth.models import AnonymousUser
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from django_run_cancel.models import ApiKey


class ApiKeyAuthentication(BaseAuthentication):
    """Authenticate by API key; ``request.auth`` is then the key.

    A header that is there decides, even when it is empty: a wrong key never falls back to the
    session.
    """

    def authenticate(self, request: Request) -> tuple[AnonymousUser, ApiKey] | None:
        """Return the key, or None when the request has no such header.

        Raises:
            AuthenticationFailed: The key is unknown, expired or revoked. Answered with 403, as
                the contract has it, because no ``WWW-Authenticate`` goes with it.
        """
        sent = request.META.get("HTTP_X_API_KEY")
        if sent is None:
            return None
        key = ApiKey.authenticate(sent)
        if key is None:
            raise AuthenticationFailed
        return AnonymousUser(), key
